"""Entries of the cache come back as they were written, and a damaged one counts as absent."""

import errno
import os

import numpy as np
import pytest
from safetensors import SafetensorError

from tinyseed.data import cache
from tinyseed.data.cache import read_arrays, write_arrays
from tinyseed.errors import RunError


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


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(
        RunError, match=r"No space left on device.*; set TINYSEED_CACHE to a folder on a larger"
    ):
        write_arrays(tmp_path / "entry", {}, {})
    assert not list(tmp_path.iterdir())
