"""Labels and their absence; classes that one split lacks; settings that all evaluations share."""

import shutil

import numpy as np
import pytest

from tinyseed.errors import InputError
from tinyseed.evaluation.splits import align_labels, open_splits
from tinyseed.settings.evaluation import EvaluationSettings


def splits_of(train, test, **more):
    return open_splits(EvaluationSettings(train_data=(str(train),), test_data=(str(test),), **more))


def test_both_splits_are_numbered_as_the_training_data(colors):
    splits = splits_of(*colors)
    assert splits.classes == ("blue", "green", "red")
    assert (len(splits.train), len(splits.test), splits.same, splits.notes) == (72, 24, False, ())
    assert np.bincount(splits.test.labels).tolist() == [8, 8, 8]


def test_the_same_images_are_noticed_and_so_is_a_limit(colors):
    train, _ = colors
    assert splits_of(train, train).same
    limited = splits_of(train, train, limit=10)
    assert (len(limited.train), limited.same) == (10, True)


def test_classes_that_one_split_lacks_are_noted_and_counted(changed):
    train, test = changed
    shutil.rmtree(train / "green")
    shutil.rmtree(test / "red")
    splits = splits_of(train, test)
    absent, untested = splits.notes
    assert absent.startswith("8 test images are of classes without a training image (green)")
    assert untested.startswith("1 of 2 classes have no test image (red)")
    assert set(splits.test.labels.tolist()) == {0, 3}  # blue, and one beyond the training classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, test: [shutil.rmtree(train / name) for name in ("red", "blue")], "train_data="),
        (lambda train, test: [shutil.rmtree(test / name) for name in ("red", "blue")], "test_data="),
    ],
)
def test_missing_labels_are_one_line(changed, change, message):
    change(*changed)
    with pytest.raises(InputError, match="has no labels") as caught:
        splits_of(*changed)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused(colors):
    train, test = colors
    with pytest.raises(InputError, match="train_data=a single class"):
        splits_of(train, test, limit=1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"workers": -1}, "workers=-1"),
        ({"image_size": 4}, "image_size=4"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError) as caught:
        EvaluationSettings(train_data=("a",), test_data=("b",), **setting).check()
    assert str(caught.value).startswith(message)


def test_align_labels_matches_names_not_numbers():
    aligned = align_labels(("cat", "dog", "owl"), ("owl", "emu", "cat"), np.array([0, 1, 2, -1, 0]))
    assert aligned.tolist() == [2, 4, 0, -1, 2]
    assert aligned.dtype == np.int64
    assert align_labels(("cat",), (), np.array([-1, -1])).tolist() == [-1, -1]
