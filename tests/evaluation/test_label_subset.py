"""Label subsets: balanced, seeded, written and read back."""

import numpy as np
import pytest

from tinyseed.data.sources import open_source
from tinyseed.errors import InputError
from tinyseed.evaluation.label_subset import balanced_subset, read_subset
from tinyseed.evaluation.splits import Split, open_splits
from tinyseed.settings.evaluation import EvaluationSettings


@pytest.fixture
def split(colors) -> Split:
    source = open_source([str(colors[0])])
    assert source.labels is not None
    return Split(source, np.arange(len(source)), source.labels)


def unbalanced(split: Split) -> Split:
    """24, 12 and 2 images."""
    return split.take(np.r_[0:24, 24:36, 48:50])


def test_each_class_gives_the_same_number(split):
    for fraction in (0.01, 0.125, 0.5, 1.0):
        counts = np.bincount(split.labels[balanced_subset(split, fraction, 0).places])
        assert counts.tolist() == [max(1, round(24 * fraction))] * 3
    uneven = np.bincount(split.labels[balanced_subset(split, 8 / 72, 0).places])
    assert uneven.sum() == 8
    assert uneven.max() - uneven.min() == 1


def test_a_small_class_gives_all_it_has(split):
    few = unbalanced(split)
    assert np.bincount(few.labels[balanced_subset(few, 0.5, 0).places]).tolist() == [7, 6, 2]
    assert np.bincount(few.labels[balanced_subset(few, 0.001, 0).places]).tolist() == [1, 1, 1]


def test_the_seed_decides_and_a_larger_share_holds_a_smaller_one(split):
    first = balanced_subset(split, 0.25, 0).places
    assert np.array_equal(first, balanced_subset(split, 0.25, 0).places)
    assert not np.array_equal(first, balanced_subset(split, 0.25, 1).places)
    assert set(first) < set(balanced_subset(split, 0.5, 0).places)


def test_what_is_saved_is_read_back(split, tmp_path):
    chosen = balanced_subset(split, 0.25, 3)
    (tmp_path / "semi-subset-0.25.txt").write_text(chosen.text(split))
    assert chosen.text(split).splitlines() == [split.source.name(int(place)) for place in chosen.places]
    again = read_subset(split, tmp_path / "semi-subset-0.25.txt")
    assert np.array_equal(again.places, chosen.places)
    assert again.name == chosen.name == "0.25"


def test_published_lists_name_files_without_folders(split, tmp_path):
    path = tmp_path / "1percent.txt"
    path.write_text("train-red-03.png\ntrain-blue-00.png\n")
    assert read_subset(split, path).places.tolist() == [0, 51]


def test_a_name_that_several_images_have_needs_its_folder(photos, tmp_path):
    train = train_split_of(photos)
    path = tmp_path / "list.txt"
    path.write_text("square/03.jpg\ndisc/04.jpg\n")
    assert read_subset(train, path).places.tolist() == [4, 33]
    path.write_text("03.jpg\n")
    with pytest.raises(InputError, match=r"^03\.jpg: 2 training images have this name"):
        read_subset(train, path)


def train_split_of(photos):
    return open_splits(EvaluationSettings(train_data=(str(photos),), test_data=(str(photos),))).train


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("unknown.png\n", "no training image"),
        ("\n", "is empty"),
        ("train-red-03.png\n" * 2, "names an image twice"),
    ],
)
def test_a_broken_list_is_one_line(split, tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_subset(split, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_subset(split, tmp_path / "nothing.txt")
