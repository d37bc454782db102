"""The files that tinyseed writes: an encoder is restored from them, and what is wrong with them is reported."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file, save_file

from tinyseed.checkpoints.saved import load_encoder, save_encoder
from tinyseed.errors import InputError, RunError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, build_projector


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def encoder(name="mobilenetv3_small_050", kind="mlp", *, seed=0, hidden=None, **settings):
    backbone = build_backbone(name, seed=seed, image_size=settings.pop("image_size", 32), **settings)
    return Encoder(backbone, build_projector(kind, backbone.width, 16, hidden, seed=seed))


@pytest.mark.parametrize("kind", ["mlp", "linear", "none"])
def test_a_saved_encoder_is_restored_from_its_files(tmp_path, kind):
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
def test_any_backbone_is_restored(tmp_path, name, settings):
    network = encoder(name, **settings).to(memory_format=torch.channels_last).eval()
    save_encoder(tmp_path, network, file="encoder.safetensors")
    loaded = load_encoder(str(tmp_path))
    batch = images(settings.get("image_size", 32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), network(batch), rtol=1e-5, atol=1e-6)
    assert (loaded.backbone.name, loaded.backbone.build) == (name, network.backbone.build)


@pytest.mark.parametrize("kind", ["mlp", "mlp-bn"])
def test_a_deep_projector_is_restored(tmp_path, kind):
    backbone = build_backbone("resnet10t", seed=4, image_size=32)
    network = Encoder(backbone, build_projector(kind, backbone.width, 16, 24, layers=5, seed=4)).train()
    network(images())  # the statistics of batch norms travel, too
    save_encoder(tmp_path, network.eval())
    loaded = load_encoder(tmp_path)
    assert (loaded.projector.dim, loaded.projector.hidden, len(loaded.projector)) == (
        16,
        24,
        len(network.projector),
    )
    with torch.no_grad():
        assert torch.equal(loaded(images()), network(images()))


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


def test_a_file_is_only_the_backbone(tmp_path):
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
    ("changes", "reason"),
    [
        (
            {"backbone": None},
            "was not written by tinyseed; give a run folder",
        ),
        ({"width": "many"}, "was not written by tinyseed"),
        ({"mean": "1,2"}, "was not written by tinyseed"),
        (
            {"backbone": "resnet81"},
            "names the model 'resnet81', which this version of its library does not have",
        ),
        ({"backbone": "resnet10t"}, "does not fit resnet10t, nothing was loaded"),
        ({"width": "1000"}, "its features have 1000 numbers"),
    ],
)
def test_wrong_metadata_are_reported(run, changes, reason):
    rewrite(run / "student.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        load_encoder(run)
    assert caught.value.argument is None
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": None}, "is not a projector that tinyseed wrote"),
        ({"kind": "cubic"}, "takes 1024 features (cubic), the backbone beside it gives 1024"),
        ({"in": "7"}, "takes 7 features (mlp), the backbone beside it gives 1024"),
        ({"hidden": "7"}, "does not fit the mlp projector"),
        ({"kind": "linear:1024 relu linear:16", "out": "9"}, "gives 9 numbers by its metadata"),
    ],
)
def test_wrong_projectors_are_reported(run, changes, reason):
    rewrite(run / "projector.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        load_encoder(run)
    assert str(caught.value).startswith(f"{run / 'projector.safetensors'}: ")
    assert reason in str(caught.value)


def test_paths_without_a_model_are_reported(tmp_path, run):
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run / "student.safetensors").read_bytes()[:5000])
    remedies = {
        "gone": "no such file or folder",
        "empty": "holds neither student.safetensors nor encoder.safetensors; has the run finished?",
        "w.pth": "cannot be read as a checkpoint (it is empty)",
        "broken.safetensors": "cannot be read as a safetensors file",
    }
    for name, remedy in remedies.items():
        with pytest.raises(InputError) as caught:
            load_encoder(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {remedy}")


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "taken").write_text(json.dumps({}))
    with pytest.raises(RunError, match="could not save"):
        save_encoder(tmp_path / "taken", encoder())
