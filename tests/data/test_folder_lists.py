"""Text files of paths as sources."""

import pickle
import time
from pathlib import Path

import pytest

from tinyseed.data.sources import open_source
from tinyseed.errors import InputError


def tree(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(source, root):
    return [str(Path(source.name(at)).relative_to(root)) for at in range(len(source))]


def test_a_list_of_paths(tmp_path):
    tree(tmp_path, ["images/b.jpg", "images/a.jpg", "far/c.jpg", "images/with space.jpg"])
    lines = [
        "\ufeffimages/b.jpg",
        "",
        "# a comment",
        "  images/a.jpg\r",
        str(tmp_path / "far/c.jpg"),
        "images/with space.jpg",
    ]
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*lines, "images/b.jpg"]), "utf-8")
    for _ in range(2):
        source = open_source([str(listing)])
        assert names(source, tmp_path) == [
            "images/b.jpg", "images/a.jpg", "far/c.jpg", "images/with space.jpg", "images/b.jpg",
        ]  # fmt: skip
        assert source.labels is None
        assert source.classes == ()
        assert source.read(0) == b"images/b.jpg"
        assert len(pickle.dumps(source)) < 1000
        assert names(pickle.loads(pickle.dumps(source)), tmp_path) == names(source, tmp_path)


def test_a_changed_list_is_seen(tmp_path):
    tree(tmp_path, ["a.jpg", "b.jpg"])
    listing = tmp_path / "files.list"
    listing.write_text("a.jpg")
    before = open_source([str(listing)])
    listing.write_text("b.jpg")
    after = open_source([str(listing)])
    assert names(after, tmp_path) == ["b.jpg"]
    assert after.fingerprint != before.fingerprint


def test_a_list_of_missing_files_names_the_first_and_how_many(tmp_path):
    tree(tmp_path, ["a.jpg"])
    (tmp_path / "list.txt").write_text("a.jpg\ngone.jpg\nlost.jpg")
    with pytest.raises(InputError, match=r"list\.txt: 2 of the 3 .* first gone\.jpg") as caught:
        open_source([str(tmp_path / "list.txt")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n"])
def test_an_empty_list(tmp_path, content):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match="names no image"):
        open_source([str(tmp_path / "list.txt")])


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\0\xff\xfe\0" * 50)
    with pytest.raises(InputError, match="is not a text file"):
        open_source([str(tmp_path / "list.txt")])
    (tmp_path / "list.txt").write_bytes(b"\xff\xe9.jpg\n")
    with pytest.raises(InputError, match=r"first \\xff\\xe9"):
        open_source([str(tmp_path / "list.txt")])


def test_of_a_long_list_only_the_beginning_is_checked(tmp_path):
    tree(tmp_path, ["a.jpg"])
    (tmp_path / "list.txt").write_text("a.jpg\n" * 1_000 + "gone.jpg\n" * 100_000)
    start = time.perf_counter()
    assert len(open_source([str(tmp_path / "list.txt")])) == 101_000
    assert time.perf_counter() - start < 2
    (tmp_path / "list.txt").write_text("a.jpg\n" * 999 + "gone.jpg\n" * 100_000)
    with pytest.raises(InputError, match=r"1 of the 1000 .* gone\.jpg"):
        open_source([str(tmp_path / "list.txt")])
