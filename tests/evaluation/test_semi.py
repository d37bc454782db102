"""`evaluate semi` as a user runs it, and its recipes."""

import math

import numpy as np
import pytest

import tinyseed
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError
from tinyseed.evaluation.semi import FineTuneSettings, recipe_for
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.recipes import settings_of

MODEL = "random:resnet10t"


def test_semi_saves_its_subsets_and_takes_them_again(settings, colors, tmp_path):
    given = {"model": MODEL, "epochs": 2, **settings}
    report = tinyseed.evaluate("semi", fraction=(0.05, 0.25), out=tmp_path / "a", **given)
    assert [(row["subset"], row["images"]) for row in report.results] == [("0.05", 4), ("0.25", 18)]
    assert all(math.isfinite(row["top1"]) for row in report.results)
    lines = (tmp_path / "a" / "semi-subset-0.25.txt").read_text().splitlines()
    source = open_source([str(colors[0])])
    all_names = [source.name(index) for index in range(len(source))]
    assert source.labels is not None
    chosen = source.labels[[all_names.index(line) for line in lines]]
    assert np.bincount(chosen).tolist() == [6, 6, 6]
    again = tinyseed.evaluate(
        "semi", subset=[tmp_path / "a" / "semi-subset-0.25.txt"], out=tmp_path / "b", **given
    )
    assert again.results[0] == report.results[1]
    assert (tmp_path / "b" / "semi-subset-0.25.txt").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fraction": (0.0,)}, "fraction=0.0: "),
        ({"fraction": (1.5,)}, "fraction=1.5: "),
        ({"batch_size": 1}, "batch_size=1: "),
        ({"lr": -1.0}, "lr=-1.0: "),
    ],
)
def test_semi_refuses_settings_out_of_range(settings, setting, message):
    with pytest.raises(InputError) as caught:
        tinyseed.evaluate("semi", model=MODEL, **settings, **setting)
    assert str(caught.value).startswith(message)


def test_a_subset_of_one_class_is_refused(settings, tmp_path):
    path = tmp_path / "reds.txt"
    path.write_text("train-red-00.png\ntrain-red-01.png\n")
    with pytest.raises(InputError, match="subset=reds: holds images of a single class"):
        tinyseed.evaluate("semi", model=MODEL, subset=[path], **settings)


def tuning(**settings) -> FineTuneSettings:
    return FineTuneSettings(train_data=("train",), test_data=("test",), **settings)


def test_swavs_settings_hold_where_the_subset_is_large_enough():
    recipe, notes = recipe_for(12_811, 0.01, tuning())
    assert (recipe.epochs, recipe.batch_size, recipe.lr_backbone, recipe.lr_head) == (20, 256, 0.02, 5.0)
    factors = [recipe.factor(epoch * 50, 50) for epoch in range(20)]
    assert factors == pytest.approx([1] * 12 + [0.2] * 4 + [0.04] * 4)
    assert notes == []
    recipe, _ = recipe_for(128_116, 0.1, tuning())
    assert (recipe.lr_backbone, recipe.lr_head, recipe.weight_decay, recipe.momentum) == (0.01, 0.2, 0, 0.9)


def test_a_small_subset_takes_small_batches_with_a_note():
    recipe, notes = recipe_for(42, 0.01, tuning())
    assert (recipe.batch_size, recipe.epochs * (42 // recipe.batch_size)) == (10, 200)
    assert any("batch 10 instead of 256" in note for note in notes)
    assert any("50 epochs instead of 20" in note for note in notes)
    recipe, notes = recipe_for(42, 0.01, tuning(epochs=3, batch_size=64, lr=0.5, lr_head=0.25))
    assert (recipe.batch_size, recipe.epochs, recipe.lr_backbone, recipe.lr_head) == (42, 3, 0.5, 0.25)
    assert notes == ["batch 42 instead of 64, since the subset has 42 images"]


def test_swavs_recipes_are_its_codes_settings():
    for name, images, share, rates in (
        ("swav-semi-1-percent", 12_811, 0.01, (0.02, 5.0)),
        ("swav-semi-10-percent", 128_116, 0.1, (0.01, 0.2)),
    ):
        given = settings_of(name, "evaluate semi")
        recipe, notes = recipe_for(images, share, tuning(**given))
        assert given["fraction"] == (share,)
        assert (recipe.lr_backbone, recipe.lr_head, recipe.batch_size, recipe.epochs) == (*rates, 256, 20)
        assert (recipe.gamma, recipe.decay, recipe.head_init, notes) == (0.2, (0.6, 0.8), "uniform", [])
    assert recipe_for(images, share, tuning())[0].head_init == "normal"


def test_the_head_is_fine_tuned_too_where_it_is_asked_for(settings, small, tmp_path):
    save_encoder(tmp_path, Encoder(small.backbone, build_projector("mlp", small.width, 8, seed=4)))
    given = {"model": tmp_path, "fraction": (0.5,), "epochs": 2, **settings}
    tops = [
        tinyseed.evaluate("semi", model_output=output, **given).results for output in ("head", "backbone")
    ]
    assert all(math.isfinite(row["top1"]) for (row,) in tops)
    assert tops[0] != tops[1]
