"""Files that are no checkpoints are called what they are; what is one is read, whatever it is called."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tinyseed.checkpoints.load import describe_model, load_model
from tinyseed.checkpoints.saved import is_export, load_encoder, save_encoder
from tinyseed.checkpoints.weights import read_content
from tinyseed.cli import main
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")
STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, 2.0])}


def saved(content, **settings) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def zipped(**files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


def archived() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pth"))
    return buffer.getvalue()


def image(kind) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def arrays(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer, np.zeros(3))
    return buffer.getvalue()


def scripted() -> bytes:
    return zipped(a__data_dot_pkl=b"x", a__constants_dot_pkl=b"x", a__code____torch___dot_py=b"x")


FILES = {
    "a web page (Quota exceeded)": b"<!DOCTYPE html><html><title>Quota\nexceeded</title></html>",
    "a web page (AccessDenied)": b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a web page": b"\n\n  <html><head></head>" + b"x" * 9000,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46827520\n",
    "a JSON file": b'{"architectures": ["ViTModel"]}',
    "a text file ('hello there, good day')": b"hello there, good day\n",
    "a text file ('Zugriff verweigert')": "Zugriff verweigert".encode("utf-16"),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a GGUF file": b"GGUF\3\0\0\0" + bytes(64),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x90\x01",
    "a TensorFlow SavedModel": b"\x08\x01\x12\xf0\x91\x02\x0a\x8a",
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(64),
    "a NumPy array": arrays(np.save),
    "a NumPy archive of 1 array": arrays(np.savez),
    "compressed with gzip": gzip.compress(saved(STATE)),
    "a tar archive": archived(),
    "a zip archive of other files (README.txt)": zipped(README_dot_txt=b"x"),
    "a Keras model": zipped(config_dot_json=b"{}", **{"model.weights.h5": b"x"}),
    "a TorchScript archive, which is code": scripted(),
    "a program of torch.export, which is code": zipped(a__models__model_dot_json=b"{}"),
    "a pickle that torch.save did not write": pickle.dumps({"a": np.zeros(3)}),
    "an image (PNG)": image("PNG"),
    "an image (JPEG)": image("JPEG"),
    "a Parquet file": b"PAR1" + bytes(64),
    "begins with zeros only": bytes(5000),
    "it is empty": b"",
    "incomplete or damaged": saved(STATE)[:-100],
    "its header is too long": b"\xff" * 7 + b"\x7f" + b'{"a": 1}',
    "incomplete: its header has 65,536 bytes, the file 10": b"\0\0\1\0\0\0\0\0{}",
    "a file of unknown kind (it begins with 01 02 03 fe)": b"\1\2\3\xfe",
    "a compressed zip archive": b"",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(what, tmp_path, capsys):
    content = FILES[what]
    if what == "a compressed zip archive":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(500))
        content = buffer.getvalue()
    for name in ("model.pth", "model.safetensors", "model.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_content(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert what in message
        assert "; " in message  # and what to do
        assert "only running its code" not in message
    with pytest.raises(SystemExit) as ended:
        main(["teachers", str(path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_contents_decide_and_not_the_name(tmp_path):
    save_file(STATE, tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_bytes(saved(STATE))
    (tmp_path / "c.safetensors").write_bytes(saved(STATE, _use_new_zipfile_serialization=False))
    (tmp_path / "no suffix").write_bytes(saved(STATE))
    for path in tmp_path.iterdir():
        read = read_content(path)
        assert isinstance(read, dict)
        assert all(torch.equal(read[name], STATE[name]) for name in STATE)


def test_an_exported_model_is_recognized_under_any_name(tmp_path):
    backbone = build_backbone("test_resnet", seed=0)
    renamed = save_encoder(tmp_path, Encoder(backbone)).rename(tmp_path / "student.pth")
    assert is_export(renamed)
    images = torch.rand(2, 3, 64, 64)
    expected = Encoder(backbone).eval()(images)
    assert torch.equal(load_encoder(renamed)(images), expected)
    assert torch.equal(load_model(str(renamed))(images), expected)


def test_a_checkpoint_in_several_files_is_read_by_its_index(tmp_path):
    save_file({"conv.weight": STATE["conv.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    names = {
        f"conv.{part}": f"model-0000{place}-of-00002.safetensors"
        for place, part in ((1, "weight"), (2, "bias"))
    }
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}, indent=2))
    with pytest.raises(
        InputError, match=r"model-00002-of-00002.safetensors is not there; put them beside it"
    ):
        read_content(index)
    save_file({"conv.bias": STATE["conv.bias"]}, tmp_path / "model-00002-of-00002.safetensors")
    read = read_content(index)
    assert isinstance(read, dict)
    assert {name: value.tolist() for name, value in read.items()} == {k: v.tolist() for k, v in STATE.items()}
    for name in ("../secret.safetensors", "/etc/passwd", index.name, 7, None):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(
            InputError, match=r"index that lists|lists files of a|cannot be read as the index"
        ):
            read_content(index)


def test_a_module_holds_code_and_the_remedy_is_its_state_dict(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"torch\.save\(model\.state_dict\(\)"):
        describe_model(str(tmp_path / "whole.pth"))


def test_a_pickle_of_another_protocol_is_not_taken_for_code(tmp_path):
    (tmp_path / "a.pth").write_bytes(saved(STATE, pickle_protocol=4))
    with pytest.raises(InputError, match="another pickle protocol"):
        read_content(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["pipe", "folder", "missing", "link", "/dev/zero"])
def test_what_is_not_a_file_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is a (pipe|folder)|no such file"):
        read_content(tmp_path / name)


def broken(change):
    """A network's state dict in which the first weight is another tensor."""
    state = build_backbone("test_resnet", seed=0).network.state_dict()
    first = next(iter(state))
    return {**state, first: change(state[first])}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.to("meta"), "meta device"),
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: tensor.to(torch.int8), "int8 where the network has float32"),
        (lambda tensor: tensor.bool(), "bool where the network has float32"),
        (lambda tensor: torch.full_like(tensor, float("nan")), "NaN or infinite"),
        (lambda tensor: torch.full_like(tensor, float("-inf")).half(), "NaN or infinite"),
        (lambda _: torch.zeros(()).expand(10**6, 10**6), "larger than itself"),
        (lambda _: torch.zeros(10**12, 0), "larger than itself"),
    ],
)
def test_tensors_that_cannot_be_weights_are_refused(change, reason, tmp_path):
    torch.save(broken(change), tmp_path / "a.pth")
    with pytest.raises(InputError, match=reason):
        describe_model(str(tmp_path / "a.pth"), arch="test_resnet")


def test_weights_in_other_floating_point_types_are_read(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save(broken(lambda tensor, dtype=dtype: tensor.to(dtype)), tmp_path / "a.pth")
        assert describe_model(str(tmp_path / "a.pth"), arch="test_resnet").architecture == "test_resnet"


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("backbone", "resnet19x"),
        ("backbone", "vit_giant_patch14_dinov2"),
        ("image_size", "1000000"),
        ("mean", "nan,0,0"),
        ("width", "x"),
        ("built_size", "4096"),
        ("std", "0,0,0"),
        ("channels", "4"),
    ],
)
def test_an_exported_model_whose_metadata_lies_is_refused_before_it_takes_memory(entry, value, tmp_path):
    file = save_encoder(tmp_path, Encoder(build_backbone("test_resnet", seed=0)))
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata | {entry: value})
    with pytest.raises(InputError, match=str(file)):
        load_encoder(tmp_path)
