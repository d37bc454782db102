"""The few labels: balanced, seeded, saved and read back."""

import numpy as np
import pytest
from tinyseed.evaluation.common import Side, open_sides
from tinyseed.evaluation.subset import balanced_subset, read_subset, save_subset

from tinyseed.data.sources import open_source
from tinyseed.errors import InputError
from tinyseed.evaluation.semi import Tuning, recipe_for


@pytest.fixture
def side(colours) -> Side:
    source = open_source([str(colours[0])])
    assert source.labels is not None
    return Side(source, np.arange(len(source)), source.labels)


def unbalanced(side: Side) -> Side:
    """24, 12 and 2 images."""
    return side.take(np.r_[0:24, 24:36, 48:50])


def test_each_class_gives_the_same_number(side):
    for fraction in (0.01, 0.125, 0.5, 1.0):
        counts = np.bincount(side.labels[balanced_subset(side, fraction, 0)])
        assert counts.tolist() == [max(1, round(24 * fraction))] * 3
    uneven = np.bincount(side.labels[balanced_subset(side, 8 / 72, 0)])
    assert uneven.sum() == 8
    assert uneven.max() - uneven.min() == 1


def test_a_small_class_gives_all_it_has(side):
    few = unbalanced(side)
    assert np.bincount(few.labels[balanced_subset(few, 0.5, 0)]).tolist() == [7, 6, 2]
    assert np.bincount(few.labels[balanced_subset(few, 0.001, 0)]).tolist() == [1, 1, 1]


def test_the_seed_decides_and_a_larger_share_holds_a_smaller_one(side):
    first = balanced_subset(side, 0.25, 0)
    assert np.array_equal(first, balanced_subset(side, 0.25, 0))
    assert not np.array_equal(first, balanced_subset(side, 0.25, 1))
    assert set(first) < set(balanced_subset(side, 0.5, 0))


def test_what_is_saved_is_read_back(side, tmp_path):
    chosen = balanced_subset(side, 0.25, 3)
    save_subset(side, chosen, tmp_path / "few.txt")
    lines = (tmp_path / "few.txt").read_text().splitlines()
    assert lines == [side.source.name(int(place)) for place in chosen]
    assert np.array_equal(read_subset(side, tmp_path / "few.txt"), chosen)


def test_published_lists_name_files_alone(side, tmp_path):
    path = tmp_path / "1percent.txt"
    path.write_text("train-red-03.png\ntrain-blue-00.png\n")
    assert read_subset(side, path).tolist() == [0, 51]


def test_a_name_that_several_images_have_needs_its_folder(photos, tmp_path):
    sides = open_sides_of(photos)
    path = tmp_path / "list.txt"
    path.write_text("square/03.jpg\ndisc/04.jpg\n")
    assert read_subset(sides, path).tolist() == [4, 33]
    path.write_text("03.jpg\n")
    with pytest.raises(InputError, match=r"--subset: 03\.jpg: 2 training images have this name"):
        read_subset(sides, path)


def open_sides_of(photos):
    from tinyseed.evaluation.common import DataConfig

    return open_sides(DataConfig(train_data=(str(photos),), test_data=(str(photos),))).train


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("unknown.png\n", "no training image"),
        ("\n", "is empty"),
        ("train-red-03.png\n" * 2, "names an image twice"),
    ],
)
def test_a_broken_list_is_one_line(side, tmp_path, content, told):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=told) as caught:
        read_subset(side, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_subset(side, tmp_path / "nothing.txt")


def test_swavs_settings_hold_where_the_subset_is_large_enough():
    recipe, notes = recipe_for(12_811, 0.01, Tuning())
    assert (recipe.epochs, recipe.batch_size, recipe.lr_trunk, recipe.lr_head) == (20, 256, 0.02, 5.0)
    factors = [recipe.factor(epoch * 50, 50) for epoch in range(20)]
    assert factors == pytest.approx([1] * 12 + [0.2] * 4 + [0.04] * 4)
    assert notes == []
    recipe, _ = recipe_for(128_116, 0.1, Tuning())
    assert (recipe.lr_trunk, recipe.lr_head, recipe.weight_decay, recipe.momentum) == (0.01, 0.2, 0, 0.9)


def test_a_small_subset_takes_small_batches_and_says_so():
    recipe, notes = recipe_for(42, 0.01, Tuning())
    assert (recipe.batch_size, recipe.epochs * (42 // recipe.batch_size)) == (10, 200)
    assert any("batch 10 instead of 256" in note for note in notes)
    assert any("50 epochs instead of 20" in note for note in notes)
    recipe, notes = recipe_for(42, 0.01, Tuning(epochs=3, batch_size=64, lr=0.5, lr_head=0.25))
    assert (recipe.batch_size, recipe.epochs, recipe.lr_trunk, recipe.lr_head) == (42, 3, 0.5, 0.25)
    assert notes == ["batch 42 instead of 64, since the subset has 42 images"]
