"""Folders that timm and transformers write: config.json beside the weights."""

import json

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tinyseed.checkpoints.load import describe_model, load_model
from tinyseed.errors import InputError
from tinyseed.models.spec import ModelSpec


@pytest.fixture
def timm_folder(tmp_path, settled):
    """What timm's `save_for_hf` writes for a ResNet-10 with a classifier of five classes, and the network."""
    import timm
    from timm.models import save_for_hf

    network = settled(timm.create_model("resnet10t", num_classes=5))
    network.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), input_size=(3, 96, 96))
    save_for_hf(network, tmp_path / "saved")
    network.reset_classifier(0)
    return tmp_path / "saved", network


def test_a_folder_of_timm(timm_folder, noise):
    folder, network = timm_folder
    encoder = load_model(folder)
    assert (encoder.input.mean, encoder.input.std, encoder.input.size) == (
        (0.1, 0.2, 0.3),
        (0.5, 0.6, 0.7),
        96,
    )
    with torch.no_grad():
        wanted = F.normalize(network(noise(96)), dim=1)
        torch.testing.assert_close(encoder(noise(96)), wanted, rtol=0, atol=1e-5)
    described = describe_model(folder)
    assert (described.method, described.architecture) == ("timm", "resnet10t")
    assert described.unused == {"classifier": 2}


def test_a_folder_of_timm_that_is_damaged_is_refused(timm_folder):
    folder, _ = timm_folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "resnet14t"}))
    with pytest.raises(InputError, match="missing"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "resnet10u"}))
    with pytest.raises(InputError, match="resnet10u"):
        load_model(folder)
    for file in folder.glob("*model.*"):
        file.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_transformers(tmp_path, noise):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval().requires_grad_(False)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "resample": 2})
    )
    encoder = load_model(ModelSpec(tmp_path))
    assert (encoder.input.mean, encoder.input.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    wanted = F.normalize(model(pixel_values=noise(28)).pooler_output, dim=1)
    torch.testing.assert_close(encoder(noise(28)), wanted, rtol=0, atol=1e-5)
    assert describe_model(tmp_path).method == "transformers"
