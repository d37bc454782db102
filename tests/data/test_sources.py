"""What a user may give as data, several at once, and parts of them."""

import pickle

import numpy as np
import pytest

from tinyseed.data.base import Source, Subset, labels_as
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError, argument


def tree(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


@pytest.fixture
def three(tmp_path):
    """Two folders whose classes overlap, and one without labels between them."""
    tree(tmp_path / "a", ["cat/1.jpg", "dog/2.jpg"])
    tree(tmp_path / "b", ["x.jpg"])
    tree(tmp_path / "c", ["ant/3.jpg", "cat/4.jpg", "dog/5.jpg", "loose.jpg"])
    return open_source([str(tmp_path / name) for name in "abc"])


def test_several_are_one_after_the_other_and_classes_merge_by_name(three):
    assert isinstance(three, Source)
    read = [three.read(at).decode() for at in range(len(three))]
    assert read == ["cat/1.jpg", "dog/2.jpg", "x.jpg", "loose.jpg", "ant/3.jpg", "cat/4.jpg", "dog/5.jpg"]
    assert three.classes == ("cat", "dog", "ant")
    assert three.labels is not None
    assert three.labels.dtype == np.int64
    assert three.labels.tolist() == [0, 1, -1, -1, 2, 0, 1]
    assert three.name(5).endswith("c/cat/4.jpg")


def test_several_without_labels(tmp_path):
    both = open_source([str(tree(tmp_path / name, ["only/1.jpg"])) for name in "ab"])
    assert len(both) == 2
    assert both.labels is None
    assert both.classes == ()


def test_the_fingerprint_of_several(tmp_path):
    specs = [str(tree(tmp_path / name, [f"{name}.jpg"])) for name in "ab"]
    assert open_source(specs).fingerprint == open_source(specs).fingerprint
    assert open_source(specs).fingerprint != open_source(specs[::-1]).fingerprint
    assert open_source(specs).fingerprint != open_source(specs[:1]).fingerprint


def test_several_pickle_small(three):
    assert len(pickle.dumps(three)) < 1500
    again = pickle.loads(pickle.dumps(three))
    assert again.read(6) == b"dog/5.jpg"
    np.testing.assert_array_equal(again.labels, three.labels)


def test_a_subset(three):
    part = Subset(three, np.array([6, 0, 0, 2]))
    assert isinstance(part, Source)
    assert [part.read(at) for at in range(len(part))] == [b"dog/5.jpg", b"cat/1.jpg", b"cat/1.jpg", b"x.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 0, -1]
    assert part.classes == three.classes
    assert part.name(0) == three.name(6)
    assert part.fingerprint != three.fingerprint
    assert part.fingerprint != Subset(three, np.array([6, 0, 0, 1])).fingerprint
    again = pickle.loads(pickle.dumps(part))
    assert again.read(0) == b"dog/5.jpg"
    deeper = Subset(part, np.array([3]))
    assert deeper.read(0) == b"x.jpg"
    assert len(Subset(three, np.array([], np.int64))) == 0


@pytest.mark.parametrize("indices", [[7], [-1]])
def test_a_subset_of_what_is_not_there(three, indices):
    with pytest.raises(ValueError, match="indices"):
        Subset(three, np.array(indices))


@pytest.mark.parametrize("index", [-1, 7])
def test_no_index_outside(three, index):
    for source in (three, Subset(three, np.arange(7))):
        with pytest.raises(IndexError):
            source.read(index)
        with pytest.raises(IndexError):
            source.name(index)


def test_labels_in_the_numbers_of_another_source(three, tmp_path):
    other = open_source([str(tree(tmp_path / "d", ["ant/1.jpg", "bee/2.jpg", "dog/3.jpg", "4.jpg"]))])
    assert other.classes == ("ant", "bee", "dog")
    assert labels_as(other, three.classes).tolist() == [-1, 2, -1, 1]
    unlabelled = open_source([str(tmp_path / "b")])
    assert labels_as(unlabelled, three.classes).tolist() == [-1]


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tree(tmp_path, ["photos/1.jpg"])))
    assert len(open_source(["~/photos"])) == 1


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("nowhere", r"nowhere: does not exist: give a folder of images, a text file"),
        ("nowhere.parquet", "does not exist"),
        ("empty", r"holds no images \(jpg, jpeg, png, webp, bmp, tif, tiff, gif"),
        ("notes", "holds no images"),
        ("photo.jpg", "is a file of another kind: give a folder"),
        ("table.csv", "is a file of another kind"),
        ("*.jpg", "patterns are for"),
        ("shard.tar", "not supported yet: give a folder"),
        ("shard-{000..099}.tar", "not supported yet"),
        ("shard-000.tar.gz", "not supported yet"),
        ("hf:owner/name", "not supported yet"),
        ("s3://bucket/train", "not supported yet"),
        ("s3://bucket/*.parquet", "not supported yet"),
        ("https://example.org/a.parquet", "not supported yet"),
        ("", "an empty text"),
        (" ", "an empty text"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, monkeypatch, spec, remedy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    tree(tmp_path, ["notes/a.md", "photo.jpg", "table.csv", "shard.tar", ".hidden/1.jpg"])
    with pytest.raises(InputError, match=remedy) as caught, argument("train_data"):
        open_source([spec])
    assert str(caught.value).startswith("train_data=")
    assert "\n" not in str(caught.value)


def test_nothing_given():
    with pytest.raises(InputError, match=r"^\(nothing\): give a folder of images, .* or torchvision:NAME$"):
        open_source([])
