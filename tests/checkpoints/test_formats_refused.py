"""Files that are broken, of no known layout, or dangerous: refused with their reason, nothing loaded, nothing run."""

import os
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from tinyseed.checkpoints.public import load_file
from tinyseed.errors import InputError, argument
from tinyseed.models.spec import ModelSpec

# One listing of each family, and a tensor of its backbone.
FAMILIES = {
    "moco_v1_resnet50": "module.encoder_q.layer1.0.conv1.weight",
    "moco_v2_resnet18": "module.encoder_q.layer1.0.conv1.weight",
    "simclr_resnet50": "module.module.module.layer2.0.conv1.weight",
    "seed_resnet18_from_moco_resnet50": "module.student.layer1.0.conv1.weight",
    "seed_mobilenetv3_large_from_moco_resnet50": "module.student.features.4.conv.5.fc.0.weight",
    "dino_resnet50": "layer4.2.conv3.weight",
    "dino_vits16": "blocks.3.attn.qkv.weight",
    "swav_resnet50": "module.layer1.0.conv1.weight",
    "more/seed_smallpatch_rn18_from_swav": "module.student.layer1.0.conv1.weight",
    "more/seed_efficientnet_b0": "module.student._blocks.3._se_reduce.weight",
    "more/seed_mobilenetv3_small": "module.student.features.4.conv.5.fc.0.weight",
    "more/moco_v3_vits": "module.base_encoder.blocks.3.attn.qkv.weight",
    "more/simclr_sthalles": "backbone.layer1.0.conv1.weight",
}


def refused(path):
    with pytest.raises(InputError) as caught, argument("teacher", arch="teacher_arch"):
        load_file(path, ModelSpec(path))
    assert str(caught.value).startswith("teacher=")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def tensors_of(about):
    return about["tensors"] if "tensors" in about else next(iter(about["tensors_by_place"].values()))


def empty(about):
    """A listing's tensors without memory: they are refused by their names and shapes."""
    return {
        name: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        for name, (shape, dtype) in tensors_of(about).items()
    }


@pytest.fixture
def save(wrapped, tmp_path):
    def save(state, layout):
        torch.save(wrapped(state, layout), tmp_path / "checkpoint.pth.tar")
        return tmp_path / "checkpoint.pth.tar"

    return save


@pytest.mark.parametrize("name", FAMILIES)
def test_a_renamed_and_a_misshapen_tensor_are_named(name, listing, save):
    about, tensor = listing(name), FAMILIES[name]
    plain = tensor.replace("module.", "").removeprefix("encoder_q.").removeprefix("student.")
    plain = plain.removeprefix("base_encoder.").removeprefix("backbone.")
    state = empty(about)
    state[f"{tensor}s"] = state.pop(tensor)
    message = refused(save(state, about["file_layout"]))
    assert "nothing was loaded" in message
    assert f"1 missing ({plain})" in message
    assert f"1 unexpected ({plain}s)" in message
    assert "give `teacher_arch` NAME" in message

    state = empty(about)
    shape = list(state[tensor].shape)
    state[tensor] = torch.zeros(()).expand(shape[0] + 1, *shape[1:])
    message = refused(save(state, about["file_layout"]))
    assert f"1 mis-shaped ({plain} {[shape[0] + 1, *shape[1:]]} instead of {shape})" in message


@pytest.mark.parametrize("name", [name for name in FAMILIES if "dino" not in name])
def test_a_wrong_head_is_named(name, listing, save):
    about = listing(name)
    heads, others = (".fc.", "projection_head", "encoder.head."), ("_k.", "teacher", "momentum", "features")
    last = [key for key in tensors_of(about) if any(head in key for head in heads) and key.endswith("weight")]
    last = next(key for key in reversed(last) if not any(other in key for other in others))
    state = empty(about)
    state[last] = torch.zeros(()).expand(*state[last].shape[:-1], state[last].shape[-1] + 2)
    assert "mis-shaped" in refused(save(state, about["file_layout"]))
    state = empty(about)
    state[last.replace("weight", "wait")] = state.pop(last)
    message = refused(save(state, about["file_layout"]))
    assert last.replace("weight", "wait")[-4:] in message


@pytest.mark.parametrize("name", FAMILIES)
def test_a_truncated_file_is_refused(name, listing, save):
    about = listing(name)
    path = save(empty(about), about["file_layout"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read as a checkpoint" in refused(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("layout", ["bare", "state_dict", "model", "beside", "old format"])
def test_code_in_a_pickle_is_not_run(tmp_path, layout):
    bomb, path = Bomb(tmp_path / "executed"), tmp_path / "bad.pth"
    state = OrderedDict({"conv1.weight": torch.zeros(2), "bomb": bomb})
    match layout:
        case "old format":
            torch.save(state, path, _use_new_zipfile_serialization=False)
        case "beside":
            torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}, "optimizer": bomb}, path)
        case "bare":
            torch.save(state, path)
        case _:
            torch.save({layout: state}, path)
    message = refused(path)
    assert "posix.system" in message
    assert "only running its code could load" in message
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "control")))  # the bomb is live
    assert (tmp_path / "control").exists()


def test_tensors_that_a_layout_does_not_know_are_refused(listing, save):
    about = listing("moco_v2_resnet18")
    state = empty(about) | {"module.predictor.weight": torch.zeros(2, 2)}
    assert "no MoCo v2 checkpoint has, nothing was loaded: predictor.weight" in refused(
        save(state, about["file_layout"])
    )
    state = empty(about)
    state["modul.encoder_q.conv1.weight"] = state.pop("module.encoder_q.conv1.weight")
    message = refused(save(state, about["file_layout"]))
    assert "modul.encoder_q.conv1.weight" in message
    assert "give `prefix` encoder_q" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"state_dict": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}},
            "holds several networks ('state_dict', 'ema'), nothing was loaded",
        ),
        ({"state_dict": {}}, "holds no tensors of a network (only 'state_dict')"),
        ({"a": 2.0, "b": 3}, "holds no tensors of a network (only 'a', 'b')"),
        ({name: torch.zeros(1) for name in ("module.a", "a", "module.b")}, "twice, with and without 'module.'"),
        ([torch.zeros(1)], "holds a list where a state dict is needed"),
    ],
)  # fmt: skip
def test_what_is_not_a_checkpoint_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.pth")
    assert reason in refused(tmp_path / "x.pth")


def test_broken_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert "cannot be read as a safetensors file" in refused(tmp_path / "x.safetensors")
    assert "no such file" in refused(tmp_path / "y.pth")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "z.pt"))
    assert "is a TorchScript archive, which is code" in refused(tmp_path / "z.pt")


def test_a_head_that_is_asked_for_has_to_be_there(tmp_path):
    from torchvision import models

    save_file(models.resnet18().state_dict(), tmp_path / "x.safetensors")
    spec = ModelSpec(tmp_path / "x.safetensors", output="head")
    with pytest.raises(InputError) as caught, argument("teacher", output="teacher_output"):
        load_file(tmp_path / "x.safetensors", spec)
    assert str(caught.value).startswith("teacher_output=head: ")
    assert "has no head; give backbone" in str(caught.value)
