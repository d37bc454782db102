import pickle

import numpy as np
import pytest
import torch

from tinyseed.checkpoints.load import load_model
from tinyseed.detection.export import export_detectron2
from tinyseed.errors import InputError
from tinyseed.models.spec import ModelSpec


def expected_names(blocks, convolutions):
    """Detectron2's ResNet: stem.conv1, res2 … res5, in each block conv1 …, shortcut where the shape changes; each
    convolution has its norm inside it."""
    convs = ["stem.conv1"]
    for stage, count in enumerate(blocks, 2):
        for block in range(count):
            convs += [f"res{stage}.{block}.conv{number}" for number in range(1, convolutions + 1)]
            if block == 0 and (stage > 2 or convolutions == 3):
                convs.append(f"res{stage}.{block}.shortcut")
    norm = ("weight", "bias", "running_mean", "running_var")
    return {f"{conv}.weight" for conv in convs} | {f"{conv}.norm.{part}" for conv in convs for part in norm}


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions"),
    [
        ("resnet18", (2, 2, 2, 2), 2),
        ("resnet26", (2, 2, 2, 2), 3),
        ("torchvision/resnet18", (2, 2, 2, 2), 2),
    ],
)
def test_names_are_detectron2s_and_values_the_backbones(tmp_path, name, blocks, convolutions):
    encoder = load_model(f"random:{name}")
    content = pickle.loads(export_detectron2(encoder, tmp_path / "r.pkl").read_bytes())
    model = content.pop("model")
    assert content == {"__author__": "tinyseed", "matching_heuristics": True}
    assert model.keys() == expected_names(blocks, convolutions)
    state = encoder.backbone.network.state_dict()
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert len(model) == len(state) - counters
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.1.conv2.weight": "layer1.1.conv2.weight",
        "res5.0.conv1.norm.bias": "layer4.0.bn1.bias",
        "res4.0.shortcut.weight": "layer3.0.downsample.0.weight",
        "res3.0.shortcut.norm.running_mean": "layer2.0.downsample.1.running_mean",
    }.items():
        assert isinstance(model[theirs], np.ndarray)
        assert model[theirs].dtype == np.float32
        np.testing.assert_array_equal(model[theirs], state[ours].numpy())


def test_each_value_comes_back_under_its_old_name(tmp_path):
    encoder = load_model("random:resnet18")
    for index, value in enumerate(encoder.backbone.network.state_dict().values()):
        value.fill_(index)
    model = pickle.loads(export_detectron2(encoder, tmp_path / "r.pkl").read_bytes())["model"]
    values = [float(value.flat[0]) for value in model.values()]
    wanted = [
        float(value.flatten()[0])
        for key, value in encoder.backbone.network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    ]
    assert sorted(values) == sorted(wanted)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv3_small_050", "not a ResNet of plain"),
        ("resnet10t", r"conv1\.0\.weight"),
        ("seresnet18", r"layer1\.0\.se\."),
        ("resnetblur18", "antialiases before it strides"),
        ("resnetv2_18", "not a ResNet of plain"),
    ],
)
def test_other_networks_are_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        export_detectron2(load_model(f"random:{name}"), tmp_path / "r.pkl")
    assert not list(tmp_path.iterdir())


def test_small_stems_and_other_file_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="has a small stem"):
        export_detectron2(load_model(ModelSpec("random:resnet18", small_stem=True)), tmp_path / "r.pkl")
    with pytest.raises(InputError, match=r"ends in \.pkl"):
        export_detectron2(load_model("random:resnet18"), tmp_path / "r.pth")
    assert torch.is_tensor(load_model("random:resnet18").backbone.network.conv1.weight)
