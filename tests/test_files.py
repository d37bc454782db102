"""Files appear whole or not at all, digests keep their parts apart, and where the cache lies."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from tinyseed.data.sources import open_source
from tinyseed.errors import RunError
from tinyseed.files import cache_folder, digest, read_json, replacing, write_json


def test_places(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TINYSEED_CACHE")
    assert cache_folder() == tmp_path / "xdg/tinyseed"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # which the XDG specification says to ignore
    assert cache_folder() == tmp_path / "home/.cache/tinyseed"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home/.cache/tinyseed"


def test_where_nothing_can_be_written_a_temporary_folder_serves(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"content")
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "file/cache"))
    assert cache_folder() == cache_folder() != tmp_path / "file/cache"
    assert open_source([str(tmp_path / "images")]).read(0) == b"content"


def test_the_temporary_folder_goes_with_the_process(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code = "from tinyseed.files import cache_folder; f = cache_folder(); assert f.is_dir(); print(f)"
    environment = {"TINYSEED_CACHE": str(tmp_path / "file/cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "tinyseed-"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not done.stderr


def test_a_failed_writing_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as unfinished:
        unfinished.write_text("half of the n" * (1 // 0))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_is_told(tmp_path):
    told = pytest.raises(RunError, match="No space left on device; use a larger disk")
    with told, replacing(tmp_path / "file", remedy="use a larger disk"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_digest_keeps_parts_apart():
    assert digest("a", "bc") != digest("ab", "c")
    assert digest(np.arange(3)) == digest(np.arange(3).tobytes())
    assert digest(1) == digest("1")
    assert len(digest()) == 24


@pytest.mark.parametrize(
    "text", [None, "", "{", "[1]", "[" * 100_000, '{"a": "\ud800"}'.encode("utf-8", "surrogatepass")]
)
def test_a_file_that_holds_no_object_counts_as_absent(tmp_path, text):
    path = tmp_path / "known.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_json(path) is None


def test_an_object_comes_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "known.json", {"a": [1, None]})
    assert read_json(tmp_path / "known.json") == {"a": [1, None]}
