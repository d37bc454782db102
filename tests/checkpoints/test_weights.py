import argparse
import fractions
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinyseed.checkpoints import weights
from tinyseed.checkpoints.entries import read_weights
from tinyseed.checkpoints.weights import read_safetensors, write_safetensors
from tinyseed.errors import InputError, RunError

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1, 2])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
    ],
    ids=["bare", "state_dict", "model", "module"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_are_found_where_they_usually_are(tmp_path, content, zipped):
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / "w.pt"), STATE)


def test_safetensors_round_trip_with_metadata(tmp_path):
    shared = torch.randn(4, 4)
    state = {
        "a": shared,
        "b": shared.T,
        "c": shared.reshape(1, 4, 2, 2).to(memory_format=torch.channels_last),
    }
    write_safetensors(tmp_path / "made" / "w.safetensors", state, {"what": "test"})
    read, metadata = read_safetensors(tmp_path / "made" / "w.safetensors")
    assert same(read, state)
    assert metadata == {"what": "test"}
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"args": fractions.Fraction(1, 2)}, "holds no tensors of a network (only 'args')"),
        (
            {"args": argparse.Namespace(a=1)},
            "holds no tensors of a network (only 'args')",
        ),
        (nn.Linear(2, 2), "holds more than tensors (torch.nn.modules.linear.Linear)"),
        ([1, 2], "holds a list where a state dict is needed"),
        ({}, "holds a dict where a state dict is needed"),
        ({"state_dict": {"epoch": 3}}, "holds no tensors of a network (only 'state_dict')"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_not_a_state_dict_is_refused(tmp_path, content, reason, zipped):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'}: {reason}")
    assert "\x1b" not in str(caught.value)


class Marker:
    """Records that unpickling ran it."""

    ran = False

    def __reduce__(self):
        return (setattr, (Marker, "ran", True))


def test_no_code_of_a_file_is_run(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Marker(), protocol=4))
    with pytest.raises(InputError, match=r"is a pickle that torch\.save did not write, which may hold code"):
        read_weights(tmp_path / "w.pth")
    assert not Marker.ran


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_broken_files_are_refused(tmp_path, name, damage):
    path = tmp_path / name
    if name == "w.pth":
        torch.save({"a": torch.zeros(1000)}, path)
    else:
        save_file({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(
        InputError, match=rf"^/.*{name}: cannot be read as a (checkpoint|safetensors file) \("
    ):
        read_weights(path)


def test_missing_files_are_refused(tmp_path):
    for missing in ("w.pth", "w.safetensors"):
        with pytest.raises(InputError, match="no such file"):
            read_weights(tmp_path / missing)
    with pytest.raises(InputError, match="is a folder"):
        read_weights(tmp_path)


def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, STATE, {})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(RunError, match=r"could not save .*w.safetensors: .*No space left on device"):
        write_safetensors(path, {}, {})
    assert same(load_file(path), STATE)
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640
