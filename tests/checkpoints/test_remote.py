"""Teachers by URL: downloaded once into the cache, whole or not at all."""

import functools
import http.server
import io
import socket
import threading

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from tinyseed.checkpoints.load import describe_model, load_teacher
from tinyseed.checkpoints.remote import is_url, local_file
from tinyseed.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture(scope="module")
def state():
    return models.resnet18().state_dict()


@pytest.fixture
def server(tmp_path):
    """A web server for a folder; yields the folder, its address, and the paths that were asked for."""
    folder, asked = tmp_path / "www", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append((self.command, self.path))

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def refused(call, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_url_is_distinguished_from_a_path():
    assert all(map(is_url, ("https://a/b", "s3://b/k", "gs://b/k", "memory://x", "file:///x")))
    assert not any(map(is_url, ("runs/r18", "/a/b", "transformers:a/b", "C:\\x", "torchvision/resnet18")))


def test_memory_is_fetched_once(cache, state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fsspec.filesystem("memory").pipe_file("/models/r18.pth", buffer.getvalue())
    teacher = load_teacher("memory://models/r18.pth", image_size=32)
    assert (teacher.width, teacher.spec) == (512, "memory://models/r18.pth")
    assert len(list(cache.iterdir())) == 1
    fsspec.filesystem("memory").rm("/models/r18.pth")
    assert load_teacher("memory://models/r18.pth", image_size=32).digest == teacher.digest
    assert describe_model("memory://models/r18.pth").architecture == "torchvision/resnet18"
    assert refused(load_teacher, "memory://models/other.pth").endswith("no such file there")


def test_http_is_fetched_once_and_a_404_is_reported(server, cache, state):
    folder, address, asked = server
    save_file(state, folder / "r18.safetensors")
    url = f"{address}/r18.safetensors?download=1"
    first = load_teacher("torchvision/resnet18", weights=url, image_size=32)
    count = len(asked)
    assert count
    assert load_teacher(url, image_size=32).digest == first.digest
    assert len(asked) == count
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    assert "no such file there" in refused(load_teacher, f"{address}/none.pth")
    assert len(list(cache.iterdir())) == 1


def test_a_file_url_is_read_where_it_lies(tmp_path, cache, state):
    save_file(state, tmp_path / "r 18.safetensors")
    assert local_file(f"file://{tmp_path}/r%2018.safetensors") == tmp_path / "r 18.safetensors"
    assert load_teacher(f"file://{tmp_path}/r%2018.safetensors", image_size=32).width == 512
    assert not cache.exists()
    assert "no such file" in refused(load_teacher, f"file://{tmp_path}/gone.pth")


def test_what_cannot_be_fetched_is_reported(cache):
    assert refused(load_teacher, "gopher://host/r18.pth").startswith(
        "gopher://host/r18.pth: cannot be fetched ("
    )
    with socket.socket() as bound:  # bound, but not listening: the connection is refused
        bound.bind(("127.0.0.1", 0))
        message = refused(load_teacher, f"http://127.0.0.1:{bound.getsockname()[1]}/r18.pth")
    assert "cannot be fetched" in message
    assert "give the file" in message
    assert "no-such-host.invalid" in refused(local_file, "https://no-such-host.invalid/r18.pth")
    assert list(cache.iterdir()) == []


def test_a_missing_package_is_reported(cache, monkeypatch):
    from fsspec import core

    def needs(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(core, "url_to_fs", needs)
    message = refused(load_teacher, "s3://bucket/r18.pth")
    assert message == (
        "s3://bucket/r18.pth: needs a package that is not installed (Install s3fs to access S3)"
    )
