"""Where the cache lies, and that an entry appears whole or not at all."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from tinyseed.data.cache import cache_folder, digest, read_arrays, replacing, write_arrays
from tinyseed.data.sources import open_source
from tinyseed.errors import RunError


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
    code = "from tinyseed.data.cache import cache_folder; f = cache_folder(); assert f.is_dir(); print(f)"
    environment = {"TINYSEED_CACHE": str(tmp_path / "file/cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "tinyseed-"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not done.stderr


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_come_back(tmp_path, mapped):
    arrays = {
        "a": np.arange(5, dtype=np.int64),
        "b": np.array([1, 2, 3], np.uint8),
        "c": np.empty(0, np.int64),
    }
    write_arrays(tmp_path / "entry", arrays, {"name": "ä", "empty": ""})
    stored = read_arrays(tmp_path / "entry", mapped=mapped)
    assert stored is not None
    assert stored.texts == {"name": "ä", "empty": ""}
    assert stored.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored.arrays[name], array)
        assert stored.arrays[name].dtype == array.dtype


def test_any_flipped_byte_of_the_arrays_is_noticed(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.int64), "b": np.array([1, 2, 3], np.uint8)}
    write_arrays(tmp_path / "entry", arrays, {"name": "x"})
    good = (tmp_path / "entry").read_bytes()
    for place in range(len(good) - 27, len(good)):
        bad = bytearray(good)
        bad[place] ^= 4
        (tmp_path / "entry").write_bytes(bad)
        assert read_arrays(tmp_path / "entry") is None


def test_an_absent_entry_is_none(tmp_path):
    assert read_arrays(tmp_path / "nothing") is None
    assert read_arrays(tmp_path) is None


def test_a_failed_writing_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as written:
        written.write_text("half of the n" * (1 // 0))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(RunError, match="TINYSEED_CACHE"), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_digest_keeps_parts_apart():
    assert digest("a", "bc") != digest("ab", "c")
    assert digest(np.arange(3)) == digest(np.arange(3).tobytes())
    assert digest(1) == digest("1")
    assert len(digest()) == 24
