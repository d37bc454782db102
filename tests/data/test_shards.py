import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tinyseed.data import shards
from tinyseed.data.shards import ShardedArray, open_store
from tinyseed.errors import InputError

HALF = np.dtype(np.float16)
KEY = {"teacher": "abc", "data": "123", "views": [{"size": 32}]}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)  # 10 images of 8 float16


def array(folder, **key) -> ShardedArray:
    return open_store(folder / "store", KEY | key, {}).array("rows", (8,), HALF)


def values(indices, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(100, 8)).astype(np.float16)[indices]


def test_what_is_kept_comes_back_and_the_rest_is_absent(tmp_path):
    kept, some = array(tmp_path), np.array([25, 3, 99, 4])
    assert (kept.keep(1, some, values(some)) == values(some)).all()
    asked = np.array([4, 5, 99, 25, 3])
    found, there = array(tmp_path).read(1, asked)  # opened anew
    assert there.tolist() == [True, False, True, True, True]
    assert found.tobytes() == np.where(there[:, None], values(asked), np.float16(0)).tobytes()
    assert kept.present(1, asked).tolist() == there.tolist()
    assert not kept.read(0, asked)[1].any()  # another view
    assert not kept.present(0, asked).any()
    assert len(list((tmp_path / "store" / "rows").glob("view-0001-*"))) == 3  # 0–9, 20–29 and 90–99


def test_what_another_process_has_written_in_the_meantime_wins(tmp_path):
    one, other, places = array(tmp_path), array(tmp_path), np.array([7, 8])
    one.keep(0, places[:1], values(places[:1], seed=1))
    kept = other.keep(0, places, values(places, seed=2))
    assert kept.tolist() == [values([7], seed=1)[0].tolist(), values([8], seed=2)[0].tolist()]


def test_an_image_that_is_there_twice_has_one_row(tmp_path):
    twice = np.array([6, 6])
    kept = array(tmp_path).keep(0, twice, np.stack((values([6], seed=1)[0], values([6], seed=2)[0])))
    assert (kept[0] == kept[1]).all()


@pytest.mark.parametrize("place", [0, 3, 4 * 10, 4 * 10 + 15])
def test_a_damaged_row_counts_as_absent_and_is_written_again(tmp_path, place):
    kept, first = array(tmp_path), np.arange(10)
    kept.keep(0, first, values(first))
    (file,) = (tmp_path / "store" / "rows").glob("view-*")
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)
    found, there = kept.read(0, first)
    assert there.tolist() == [False] + [True] * 9
    assert not found[0].any()
    kept.keep(0, first, values(first))
    assert kept.read(0, first)[1].all()
    assert (kept.read(0, first)[0] == values(first)).all()


def test_a_file_that_was_cut_off_is_absent_where_it_ends(tmp_path):
    kept, first = array(tmp_path), np.arange(10)
    kept.keep(0, first, values(first))
    (file,) = (tmp_path / "store" / "rows").glob("view-*")
    os.truncate(file, file.stat().st_size - 20)
    assert kept.read(0, first)[1].tolist() == [True] * 8 + [False] * 2
    os.truncate(file, 10)
    assert not kept.read(0, first)[1].any()
    assert kept.present(0, first).tolist() == [True] * 2 + [False] * 8


def test_rows_at_another_address_are_not_taken_for_ones_own(tmp_path):
    kept, first = array(tmp_path), np.arange(10)
    kept.keep(0, first, values(first))
    folder = tmp_path / "store" / "rows"
    (folder / "view-0000-00000").rename(folder / "view-0001-00000")
    assert not kept.read(1, first)[1].any()


def test_several_processes_fill_at_once_and_see_the_same(tmp_path):
    array(tmp_path)
    script = """
        import sys, zlib, numpy as np
        from pathlib import Path
        from tinyseed.data import shards
        shards.SHARD_BYTES = 200
        store = shards.open_store(Path(sys.argv[1]), {"teacher": "abc", "data": "123", "views": [{"size": 32}]}, {})
        rows = store.array("rows", (8,), np.dtype(np.float16))
        order = np.random.default_rng(int(sys.argv[2])).permutation(100)
        mine = np.random.default_rng(int(sys.argv[2])).normal(size=(100, 8)).astype(np.float16)
        seen = np.empty_like(mine)
        for part in np.split(order, 10):
            seen[part] = rows.keep(0, part, mine[part])
        print(zlib.crc32(seen))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "store")]
    running = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE) for seed in range(2)]
    seen = {process.communicate(timeout=100)[0] for process in running}
    assert len(seen) == 1
    assert seen != {b""}


def test_a_disk_that_is_full_stops_keeping_and_nothing_else(tmp_path, monkeypatch):
    kept, first = array(tmp_path), np.arange(10)
    kept.keep(0, first[:3], values(first[:3]))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        given = kept.keep(0, first, values(first, seed=5))
    assert kept.stopped == "No space left on device"
    assert (given[:3] == values(first[:3])).all()
    assert (given[3:] == values(first, seed=5)[3:]).all()
    kept.keep(0, first, values(first))
    assert kept.read(0, first)[1].sum() == 3  # nothing more is tried


def test_a_store_is_refused_for_anything_else(tmp_path):
    array(tmp_path)
    for name, value in {"teacher": "xyz", "data": "9", "views": [{"size": 64}]}.items():
        with pytest.raises(
            InputError, match=f"was filled with another {name} \\(.*; give that, or another folder"
        ):
            array(tmp_path, **{name: value})
    with pytest.raises(InputError, match="another precision"):
        array(tmp_path, precision="32")
    (tmp_path / "store" / "cache.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        array(tmp_path)
    assert open_store(tmp_path / "store", KEY, {}, named_by_key=True).find("rows") is not None
    array(tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is a folder with other files"):
        open_store(tmp_path, KEY, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="cannot be made"):
        open_store(tmp_path / "thesis.tex", KEY, {})


def test_values_of_another_shape_are_refused(tmp_path):
    array(tmp_path)
    with pytest.raises(InputError, match=r"rows are float16 \(8,\), not float16 \(9,\)"):
        open_store(tmp_path / "store", KEY, {}).array("rows", (9,), HALF)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_read(tmp_path):
    array(tmp_path).keep(0, np.arange(3), values(np.arange(3)))
    (tmp_path / "store").chmod(0o555)
    kept = array(tmp_path)
    assert kept.read(0, np.arange(3))[1].all()
    kept.keep(0, np.arange(5), values(np.arange(5)))
    assert kept.stopped
    (tmp_path / "store").chmod(0o755)
