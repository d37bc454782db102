"""Folders as sources: against pathlib's own walk, and through changes on disk."""

import multiprocessing
import os
import pickle
import string
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseed.data import folder
from tinyseed.data.base import Source
from tinyseed.data.folder import EXTENSIONS, Strings
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError
from tinyseed.files import cache_folder

LONG_AGO = 1_600_000_000
FOLDER_NUMBERS = count()


def tree(root, names, age=True):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    if age:
        settle(root)
    return root


def settle(root):
    """As if nothing had changed there for long: only then is an index trusted."""
    for path in [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]:
        os.utime(path, (LONG_AGO, LONG_AGO))


def names(source, root):
    return [str(Path(source.name(at)).relative_to(root)) for at in range(len(source))]


@pytest.fixture
def listings(monkeypatch):
    """Counts how often a folder is really listed."""
    seen = []
    original = folder._list

    def counted(path):
        seen.append(path)
        return original(path)

    monkeypatch.setattr(folder, "_list", counted)
    return seen


def test_reads_names_and_labels(tmp_path):
    tree(
        tmp_path, ["dog/1.jpg", "cat/b.PNG", "cat/a.jpeg", "cat/deep/er/c.webp", "loose.gif", "dog/notes.txt"]
    )
    source = open_source([str(tmp_path)])
    assert isinstance(source, Source)
    assert names(source, tmp_path) == [
        "loose.gif",
        "cat/a.jpeg",
        "cat/b.PNG",
        "cat/deep/er/c.webp",
        "dog/1.jpg",
    ]
    assert [source.read(at).decode() for at in range(len(source))] == names(source, tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [-1, 0, 0, 0, 1]


@pytest.mark.parametrize("extension", [*EXTENSIONS, "JPG", "Tiff"])
def test_each_extension_in_any_case(tmp_path, extension):
    assert len(open_source([str(tree(tmp_path, [f"a.{extension}"]))])) == 1


@pytest.mark.parametrize(
    "kept", [["only/a.jpg", "only/b/c.jpg"], ["only/a.jpg", "loose.jpg"], ["a.jpg", "b.jpg"]]
)
def test_a_single_class_is_no_label(tmp_path, kept):
    source = open_source([str(tree(tmp_path, [*kept, "without-images/readme.md"]))])
    assert len(source) == 2
    assert source.labels is None
    assert source.classes == ()


def test_hidden_entries_are_skipped(tmp_path):
    tree(tmp_path, ["a.jpg", "._a.jpg", ".trash/b.jpg", "sub/.c.jpg", ".jpg"])
    assert names(open_source([str(tmp_path)]), tmp_path) == ["a.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tree(tmp_path / "root", ["a/1.jpg", "a/b/2.jpg"])
    tree(tmp_path / "elsewhere", ["3.jpg"])
    (root / "a/b/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "ring").symlink_to(root / "ring")
    (root / "ring.jpg").symlink_to(root / "ring.jpg")
    (root / "broken.jpg").symlink_to(root / "nothing")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "linked.jpg").symlink_to(root / "a/1.jpg")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    source = open_source([str(root)])
    assert names(source, root) == ["linked.jpg", "a/1.jpg", "a/b/2.jpg", "c/3.jpg"]
    assert source.read(0) == b"a/1.jpg"


def test_two_links_to_each_other(tmp_path):
    tree(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "a/to-b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to-a").symlink_to(tmp_path / "a")
    assert names(open_source([str(tmp_path)]), tmp_path) == [
        "a/1.jpg",
        "a/to-b/2.jpg",
        "b/2.jpg",
        "b/to-a/1.jpg",
    ]


def test_names_that_are_no_utf8(tmp_path):
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff\xe9.jpg"))).write_bytes(b"content")
    source = open_source([str(tmp_path)])
    assert source.read(0) == b"content"
    assert source.name(0).encode("utf-8").endswith(rb"\xff\xe9.jpg")


def test_deep_folders(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 200)
    tree(deep, ["x.jpg"])
    assert names(open_source([str(tmp_path)]), tmp_path) == ["d/" * 200 + "x.jpg"]


NAMES = st.text(string.ascii_letters + string.digits + " .-ä", min_size=1, max_size=4).filter(
    lambda name: name.strip(".") and name.isprintable()
)
FILES = st.builds(
    lambda folders, stem, extension: "/".join([*folders, stem + extension]),
    st.lists(NAMES, max_size=3),
    NAMES,
    st.sampled_from([".jpg", ".PNG", ".tiff", ".txt", "", ".jpg.bak"]),
)


def expected_order(relative):
    parts = os.fsencode(relative).split(b"/")
    return [(1, part) for part in parts[:-1]] + [
        (0, parts[-1])
    ]  # a folder's own images before its sub-folders'


@given(st.lists(FILES, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_equals_pathlib(tmp_path_factory, files):
    root = tmp_path_factory.mktemp(f"tree{next(FOLDER_NUMBERS)}")
    for name in files:
        path = root / name
        if not any(part.is_file() for part in path.parents) and not path.is_dir():
            tree(root, [name], age=False)
    wanted = [
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix.lower() in (".jpg", ".png", ".tiff")
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not wanted:
        with pytest.raises(InputError):
            open_source([str(root)])
        return
    source = open_source([str(root)])
    assert names(source, root) == sorted((str(path) for path in wanted), key=expected_order)
    tops = {path.parts[0] for path in wanted if len(path.parts) > 1}
    assert set(source.classes) == (tops if len(tops) > 1 else set())
    if source.labels is not None:
        for at, label in enumerate(source.labels.tolist()):
            parts = Path(source.name(at)).relative_to(root).parts
            assert (parts[0] if len(parts) > 1 else None) == (source.classes[label] if label >= 0 else None)


def test_a_name_without_a_dot_is_not_a_suffix(tmp_path):
    tree(tmp_path, ["a.jpg", "TIF", "b/jpg"])
    assert names(open_source([str(tmp_path)]), tmp_path) == ["a.jpg"]


def test_the_second_opening_lists_nothing(tmp_path, listings):
    tree(tmp_path, ["a/1.jpg", "b/c/2.jpg"])
    first = open_source([str(tmp_path)])
    assert len(listings) == 4
    second = open_source([str(tmp_path)])
    assert len(listings) == 4
    assert names(second, tmp_path) == names(first, tmp_path)
    assert second.classes == first.classes
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.labels, first.labels)


CHANGES = {
    "added deep down": lambda root: (root / "b/c/new.jpg").write_bytes(b""),
    "removed deep down": lambda root: (root / "b/c/2.jpg").unlink(),
    "renamed": lambda root: (root / "a/1.jpg").rename(root / "a/9.jpg"),
    "a new folder": lambda root: tree(root, ["d/3.jpg"], age=False),
    "a folder moved": lambda root: (root / "b/c").rename(root / "a/c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(tmp_path, change):
    root = tree(tmp_path / "root", ["a/1.jpg", "b/c/2.jpg", "b/c/3.jpg"])
    before = open_source([str(root)])
    CHANGES[change](root)
    after = open_source([str(root)])
    on_disk = {str(path.relative_to(root)) for path in root.rglob("*.jpg")}
    assert set(names(after, root)) == on_disk
    assert after.fingerprint != before.fingerprint
    assert len(before) == 3
    assert before.paths[0] == b"a/1.jpg"  # the one in use stays as it was


def test_a_folder_just_written_is_listed_anew(tmp_path, listings):
    # A file that arrives within the tick of the file system's clock would leave the folder's time unchanged.
    tree(tmp_path, ["1.jpg"], age=False)
    open_source([str(tmp_path)])
    status = tmp_path.stat()
    (tmp_path / "2.jpg").write_bytes(b"")
    os.utime(tmp_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(open_source([str(tmp_path)])) == 2
    assert len(listings) == 2


def test_the_fingerprint_tells_contents_apart(tmp_path):
    one, two, other = (
        tree(tmp_path / name, [file]) for name, file in zip("abc", ["1.jpg", "1.jpg", "2.jpg"], strict=True)
    )
    prints = [open_source([str(root)]).fingerprint for root in (one, two, other)]
    assert prints[0] == prints[1] != prints[2]
    int(prints[0], 16)


def stored(root=None):
    return [path for path in cache_folder().glob("folders-*/**/*") if path.is_file()]


@pytest.mark.parametrize(
    "damage", [b"", b"\x10", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{}", "half", "flip", "tail"]
)
def test_a_damaged_index_is_made_anew(tmp_path, monkeypatch, damage, listings):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    root = tree(tmp_path / "root", ["a/1.jpg", "b/2.jpg"])
    good = names(open_source([str(root)]), root)
    (path,) = stored()
    content = bytearray(path.read_bytes())
    if damage == "half":
        content = content[: len(content) // 2]
    elif damage == "tail":
        content = content[:-1]
    elif damage == "flip":
        content[content.index(b"a/1.jpg")] ^= 1
    else:
        content = damage
    path.write_bytes(content)
    assert names(open_source([str(root)]), root) == good
    assert len(listings) == 6
    assert names(open_source([str(root)]), root) == good
    assert len(listings) == 6


def test_few_old_indexes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    for number in range(7):
        open_source([str(tree(tmp_path / "root", [f"{number}.jpg"]))])
    assert 1 <= len(stored()) <= 4
    assert not [path for path in stored() if path.name.startswith(".")]


def test_pickles_small_whatever_the_size(tmp_path):
    tree(tmp_path, [f"class{number % 3}/{number:05}-with-a-rather-long-name.jpg" for number in range(2000)])
    source = open_source([str(tmp_path)])
    data = pickle.dumps(source)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert [again.name(at) for at in range(len(again))] == [source.name(at) for at in range(len(source))]
    assert again.classes == source.classes
    assert again.fingerprint == source.fingerprint
    np.testing.assert_array_equal(again.labels, source.labels)


def test_paths_and_labels_are_mapped_from_the_file(tmp_path):
    source = open_source([str(tree(tmp_path, ["a/1.jpg", "b/2.jpg"]))])
    assert str(source.stored_at) in Path("/proc/self/maps").read_text(encoding="utf-8")
    held = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert source.stored_at not in [link.readlink() for link in held]  # a process may have few descriptors
    torch.from_numpy(source.labels)[0] = 5  # PyTorch would warn of an array that cannot be written
    again = open_source([str(tmp_path)])
    assert again.labels.tolist() == [0, 1]
    assert source.labels.tolist() == [5, 1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later warn of threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    source = open_source([str(tree(tmp_path, ["a/1.jpg", "b/2.jpg"]))])
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert [pool.submit(source.read, at).result() for at in (0, 1)] == [b"a/1.jpg", b"b/2.jpg"]


def test_a_worker_says_that_its_index_has_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    data = pickle.dumps(open_source([str(tree(tmp_path / "root", ["1.jpg"]))]))
    stored()[0].unlink()
    with pytest.raises(FileNotFoundError, match="was removed"):
        pickle.loads(data)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_index_outside(tmp_path, index):
    source = open_source([str(tree(tmp_path, ["1.jpg", "2.jpg"]))])
    with pytest.raises(IndexError):
        source.read(index)
    with pytest.raises(IndexError):
        source.name(index)


def test_a_file_that_has_gone_is_an_os_error(tmp_path):
    source = open_source([str(tree(tmp_path, ["1.jpg"]))])
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    tree(tmp_path, ["a/1.jpg", "locked/2.jpg"])
    original = os.scandir

    def refusing(path):
        if path.rstrip(b"/").endswith(b"locked"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"locked: cannot be listed: Permission denied"):
        open_source([str(tmp_path / "locked")])
    source = open_source([str(tmp_path)])
    assert names(source, tmp_path) == ["a/1.jpg"]
    assert source.notes == (
        f"{tmp_path}: left out 1 folder that cannot be listed (locked: Permission denied)",
    )
    monkeypatch.undo()
    assert names(open_source([str(tmp_path)]), tmp_path) == ["a/1.jpg", "locked/2.jpg"]  # not from the index


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_strings_come_back(strings):
    table = Strings.of(strings)
    assert [table[at] for at in range(len(table))] == strings
