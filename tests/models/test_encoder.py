import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinyseed.errors import InputError, RunError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, Projector, build_projector, freeze, load_encoder, save_encoder


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def encoder(name="mobilenetv3_small_050", kind="mlp", *, seed=0, hidden=None, **settings):
    backbone = build_backbone(name, seed=seed, image_size=settings.pop("image_size", 32), **settings)
    return Encoder(backbone, build_projector(kind, backbone.width, 16, hidden, seed=seed))


def test_projectors_have_the_layers_that_they_are_named_for():
    assert build_projector("none", 8, 4) is None
    linear = build_projector("linear", 8, 4)
    mlp = build_projector("mlp", 8, 4)
    wide = build_projector("mlp", 8, 4, 32)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    shapes = [[tuple(parameter.shape) for parameter in head.parameters()] for head in (linear, mlp, wide)]
    assert shapes[0] == [(4, 8), (4,)]
    assert shapes[1] == [(8, 8), (8,), (4, 8), (4,)]
    assert shapes[2] == [(32, 8), (32,), (4, 32), (4,)]


def test_projectors_with_batch_norm_are_simclrs_and_swavs():
    two, three = build_projector("mlp-bn", 8, 4, 16), build_projector("mlp-bn-3", 8, 4, 16)
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in two] == [*block, nn.Linear]
    assert [type(layer) for layer in three] == [*block, *block, nn.Linear]
    assert [layer.in_features for layer in three if isinstance(layer, nn.Linear)] == [8, 16, 16]


def test_a_projector_follows_its_seed():
    weights = [build_projector("mlp", 8, 4, seed=seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", ["mlp", "linear", "none"])
def test_rows_are_projected_and_normalised(kind):
    """Against NumPy in float64 on the same features."""
    network = encoder(kind=kind).eval()
    with torch.no_grad():
        rows, features = network(images()), network.features(images())
    wanted = features.double().numpy()
    layers = [] if network.projector is None else list(network.projector)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            wanted = wanted @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        else:
            wanted = np.maximum(wanted, 0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert rows.shape == (3, network.dim)
    assert network.dim == (1024 if kind == "none" else 16)
    assert network.width == features.shape[1] == 1024
    np.testing.assert_allclose(rows.numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_unit_float32_under_autocast(dtype):
    network = encoder("resnet10t").eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        rows, features = network(images()), network.features(images())
    assert rows.dtype == features.dtype == torch.float32
    norms = np.linalg.norm(rows.double().numpy(), axis=1)
    np.testing.assert_allclose(norms, 1, atol=3e-7)  # rows rounded to bfloat16 would be off by 1e-3


def test_float64_stays_float64():
    network = encoder("resnet10t").double().eval()
    assert network(images().double()).dtype == torch.float64


def test_a_row_of_zeros_has_a_finite_gradient():
    network = encoder("resnet10t").eval()
    nn.init.zeros_(network.projector[2].weight)
    nn.init.zeros_(network.projector[2].bias)
    rows = network(images())
    rows.sum().backward()
    gradient = network.projector[2].weight.grad
    assert torch.equal(rows, torch.zeros_like(rows))
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e8


def test_freeze():
    network = freeze(encoder("resnet10t"))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["mlp", "linear", "none"])
def test_a_saved_encoder_comes_back_from_its_files_alone(tmp_path, kind):
    network = encoder(kind=kind, hidden=24, seed=4).eval()
    file = save_encoder(tmp_path / "run", network)
    loaded = load_encoder(tmp_path / "run")
    assert file == tmp_path / "run" / "student.safetensors"
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images()), network(images()))
    assert loaded.input == network.input


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet10t", {"small_stem": True}),
        ("torchvision/resnet18", {"small_stem": True}),
        ("torchvision/squeezenet1_1", {}),
        ("test_vit", {"image_size": 64}),
    ],
)
def test_any_backbone_comes_back(tmp_path, name, settings):
    network = encoder(name, **settings).to(memory_format=torch.channels_last).eval()
    save_encoder(tmp_path, network, file="encoder.safetensors")
    loaded = load_encoder(str(tmp_path))
    batch = images(settings.get("image_size", 32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), network(batch), rtol=1e-5, atol=1e-6)
    assert (loaded.backbone.name, loaded.backbone.build) == (name, network.backbone.build)


def test_plain_timm_loads_the_file_strictly_and_sees_the_same(tmp_path):
    network = encoder("resnet18", seed=2).train()
    network(images())  # batch norm has counted: its buffers travel, too
    file = save_encoder(tmp_path, network.eval())
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.load_state_dict(load_file(file), strict=True)
    assert plain.bn1.num_batches_tracked == 1
    with torch.no_grad():
        assert torch.equal(plain(images()), network.features(images()))


def test_the_file_says_what_it_is(tmp_path):
    more = {
        "method": "distill",
        "image_size": "48",
        "mean": "0.1,0.2,0.3",
        "std": "1.0,2.0,3.0",
        "backbone": "lie",
    }
    file = save_encoder(tmp_path, encoder("resnet10t", small_stem=True), metadata=more)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    del (
        metadata["tinyseed_version"],
        metadata["library_version"],
        metadata["about"],
        metadata["normalisation"],
    )
    assert metadata == {
        "format": "pt",
        "method": "distill",
        "backbone": "resnet10t",
        "library": "timm",
        "width": "512",
        "small_stem": "true",
        "built_size": "",
        "projector": "mlp",
        "interpolation": "bicubic",
        "image_size": "48",
        "mean": "0.1,0.2,0.3",
        "std": "1.0,2.0,3.0",
    }
    contract = load_encoder(tmp_path).input
    assert contract == InputContract((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 48, "bicubic")


def test_a_file_is_the_trunk_alone(tmp_path):
    network = encoder()
    file = save_encoder(tmp_path, network)
    assert load_encoder(file).projector is None
    assert load_encoder(tmp_path).dim == 16
    assert load_encoder(file).dim == 1024


def test_loading_leaves_the_generator(tmp_path):
    save_encoder(tmp_path, encoder())
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(tmp_path)
    assert torch.equal(torch.rand(3), wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_encoder(folder, encoder())
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def rewrite(file, **changes):
    """Change a file's metadata; None takes a key out."""
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata() | changes
    save_file(load_file(file), file, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"backbone": None},
            "is no model that tinyseed wrote; give a run folder",
        ),
        ({"width": "many"}, "is no model that tinyseed wrote"),
        ({"mean": "1,2"}, "is no model that tinyseed wrote"),
        ({"backbone": "resnet81"}, "unknown model; did you mean"),
        ({"backbone": "resnet10t"}, "does not fit resnet10t, nothing was loaded"),
        ({"width": "1000"}, "its features have 1000 numbers"),
    ],
)
def test_wrong_metadata_are_told(run, changes, told):
    rewrite(run / "student.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        load_encoder(run)
    assert caught.value.field == "--model"
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": None}, "is no projector that tinyseed wrote"),
        ({"kind": "cubic"}, "takes 1024 features (cubic), the trunk beside it gives 1024"),
        ({"in": "7"}, "takes 7 features (mlp), the trunk beside it gives 1024"),
        ({"hidden": "7"}, "does not fit the mlp projector"),
    ],
)
def test_wrong_projectors_are_told(run, changes, told):
    rewrite(run / "projector.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        load_encoder(run, field="--teacher")
    assert str(caught.value).startswith(f"--teacher: {run / 'projector.safetensors'}: ")
    assert told in str(caught.value)


def test_paths_without_a_model_are_told(tmp_path, run):
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run / "student.safetensors").read_bytes()[:5000])
    told = {
        "gone": "no such file or folder",
        "empty": "holds neither student.safetensors nor encoder.safetensors; has the run finished?",
        "w.pth": "is no model that tinyseed wrote",
        "broken.safetensors": "is no whole safetensors file",
    }
    for name, remedy in told.items():
        with pytest.raises(InputError) as caught:
            load_encoder(tmp_path / name)
        assert str(caught.value).startswith(f"--model: {tmp_path / name}: {remedy}")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "taken").write_text(json.dumps({}))
    with pytest.raises(RunError, match="could not save"):
        save_encoder(tmp_path / "taken", encoder())


def test_projector_keeps_its_shape():
    head = Projector("mlp", 8, 4, 6)
    assert (head.kind, head.width, head.dim, head.hidden) == ("mlp", 8, 4, 6)
