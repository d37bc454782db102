"""`tinyseed cache`: what is listed, and what is freed."""

import json
import os
import time

import numpy as np
import pytest

from tinyseed import cli
from tinyseed.arguments import UsageError
from tinyseed.data.shards import open_store
from tinyseed.errors import InputError


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache folder with a teacher's vectors, two downloads and a bank of features."""
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path))
    names = {"teacher": "moco.pth", "data": "photos"}
    store = open_store(tmp_path / "teacher-vectors" / "0123", {"teacher": "abc"}, {"names": names})
    array = store.array("rows-0", (64,), np.dtype(np.float16))
    array.keep(0, np.arange(100), np.ones((100, 64), np.float16))
    for name in ("files/a.pth", "files/b.pth", "features/x.safetensors", "mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(20_000))
    yield store
    store.close()


def listed(capsys, *arguments: str) -> dict[str, dict]:
    cli.run(["cache", *arguments, "--json"])
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["entries"]}


def test_what_is_kept_is_listed(kept, capsys):
    entries = listed(capsys)
    assert set(entries) == {"teacher-vectors/0123", "files/a.pth", "files/b.pth", "features"}
    vectors = entries["teacher-vectors/0123"]
    assert vectors["of"] == "moco.pth on photos"
    assert vectors["used"]
    assert 100 * 64 * 2 < vectors["size"] < 100_000
    assert time.time() - vectors["last_used"] < 1000
    cli.run(["cache"])
    text = capsys.readouterr().out
    assert "a teacher's vectors of random views of moco.pth on photos; in use" in text
    assert listed(capsys, str(kept.folder))[str(kept.folder)]["of"] == "moco.pth on photos"


def test_names_are_freed_but_not_what_a_run_uses(kept, capsys, tmp_path):
    cli.run(["cache", "free", "files/a.pth", "features"])
    assert set(listed(capsys.readouterr() and capsys)) == {"teacher-vectors/0123", "files/b.pth"}
    with pytest.raises(InputError, match="0123: a run uses it"):
        cli.run(["cache", "free", "files/b.pth", "teacher-vectors/0123"])
    assert "files/b.pth" in listed(capsys)
    kept.close()
    cli.run(["cache", "free", "teacher-vectors/0123"])
    capsys.readouterr()
    assert set(listed(capsys)) == {"files/b.pth"}
    assert (tmp_path / "mine.txt").exists()  # what is not ours stays


def test_all_or_the_old_ones_are_freed(kept, capsys, tmp_path):
    month = time.time() - 40 * 86400
    os.utime(tmp_path / "files" / "a.pth", (month, month))
    cli.run(["cache", "free", "--older-than", "30"])
    assert "freed files/a.pth\n20.5 kB freed" in capsys.readouterr().out
    cli.run(["cache", "free", "--all"])
    assert capsys.readouterr()
    assert set(listed(capsys)) == {"teacher-vectors/0123"}  # in use
    assert (tmp_path / "mine.txt").exists()


def test_a_cache_in_a_folder_of_its_own_is_freed_by_its_path(kept, capsys, tmp_path, monkeypatch):
    kept.close()
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "another"))
    cli.run(["cache", "free", str(kept.folder)])
    assert not kept.folder.exists()
    with pytest.raises(InputError, match=r"is not a cache: it has no cache\.json"):
        cli.run(["cache", "free", str(tmp_path)])
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("free",), "give names"),
        (("free", "nothing"), "nothing of this name is kept"),
        (("free", "--older-than", "-1"), "give a number from 0"),
        (("free", "../.."), "is not a cache"),
        (("no-such-folder",), "is not a cache"),
    ],
)
def test_mistakes_are_one_line(kept, typed, told):
    with pytest.raises((InputError, UsageError), match=told):
        cli.run(["cache", *typed])
