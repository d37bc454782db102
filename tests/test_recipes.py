"""Recipes: each trains for two steps, scaled down; flags win; a recipe of another method is refused."""

import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import tinyseed
from tinyseed import cli
from tinyseed.errors import InputError
from tinyseed.evaluations import EVALUATIONS
from tinyseed.methods.catalog import METHODS
from tinyseed.methods.distillation import augmentation
from tinyseed.methods.seed import SeedSettings
from tinyseed.recipes import RECIPES, settings_of

REQUIRED = {"data": ("photos",), "out": Path("run"), "teacher": "resnet18", "student": "resnet18"}
SETTINGS = {
    **{spec.command: spec.settings for spec in METHODS},
    **{f"evaluate {spec.name}": spec.settings for spec in EVALUATIONS},
}
TRAINING = [name for name, recipe in RECIPES.items() if not recipe.command.startswith("evaluate ")]


@pytest.fixture(scope="module")
def few_photos(photos, tmp_path_factory) -> Path:
    """Ten pictures, of which one is held out: two batches of four."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("disc", "square"):
        (folder / name).mkdir()
        for number in range(5):
            shutil.copy(photos / name / f"{number:02d}.jpg", folder / name)
    return folder


@pytest.mark.parametrize("name", TRAINING)
def test_every_recipe_trains_for_two_steps(few_photos, tmp_path, name):
    recipe = RECIPES[name]
    tiny = {"recipe": name, "epochs": 1, "batch_size": 4, "image_size": 32, "warmup_epochs": "auto"}
    tiny |= {"workers": 0, "precision": "32", "small_stem": False}
    if "warmup_lr" in recipe.settings():
        tiny["warmup_lr"] = 0.01
    if "queue_size" in recipe.settings():
        tiny["queue_size"] = 8
    if "small_crops" in recipe.settings():
        tiny |= {"small_crop_size": 16, "small_crops": 2}
    if recipe.command == "pretrain swav":
        tiny |= {"prototypes": 5, "small_crop_size": 8, "small_crops": 1, "queue_start_epoch": 0}
    method = recipe.command.split()[-1]
    if recipe.command.startswith("distill"):
        networks = {"teacher": "resnet10t", "teacher_weights": "random", "student": "resnet10t"}
        networks |= {"method": "seed" if method == "distill" else method}
        summary = tinyseed.distill(data=few_photos, out=tmp_path / "run", **networks, **tiny)
    else:
        summary = tinyseed.pretrain(
            method, data=few_photos, backbone="resnet10t", out=tmp_path / "run", **tiny
        )
    assert (summary["command"], summary["steps"]) == (recipe.command, 2)
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["recipe"] == name
    taken = {
        key: list(value) if isinstance(value, tuple) else value for key, value in recipe.settings().items()
    }
    assert {key: told[key] for key in taken if key not in tiny} == {
        key: value for key, value in taken.items() if key not in tiny
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_fields_of_its_method_and_its_source(name):
    recipe = RECIPES[name]
    assert recipe.settings().keys() <= {field.name for field in fields(SETTINGS[recipe.command])}
    assert "Source: " in recipe.notes
    assert "\n" not in recipe.about
    assert inspect.getdoc(recipe.settings).startswith(recipe.about)


def typed(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_the_list_and_the_sheets(capsys):
    code, out, _ = typed(capsys, "recipes")
    assert code == 0
    assert out.startswith("tinyseed recipes ")
    assert all(name in out for name in RECIPES)
    code, out, _ = typed(capsys, "recipes", "swav-imagenet-small")
    assert code == 0
    assert out.startswith(
        "tinyseed pretrain swav --recipe swav-imagenet-small --data photos/ --backbone resnet50"
    )
    for line in ("  --batch-size 256", "  --queue-size 3840", "  --lr 0.6", "  --large-crop-scale 0.14 1.0"):
        assert line in out.splitlines()


@pytest.mark.parametrize("name", RECIPES)
def test_a_sheets_flags_are_the_recipe(capsys, monkeypatch, name):
    """Pasted as they are, without the recipe, they make the same settings."""
    made = []
    for entry in ("tinyseed.engine.train.train", "tinyseed.evaluation.run.evaluate"):
        monkeypatch.setattr(entry, lambda *given: made.append(given[-1]))
    monkeypatch.setattr("tinyseed.evaluation.report.table", lambda _: "")
    _, sheet, _ = typed(capsys, "recipes", name)
    flags = " ".join(line.strip() for line in sheet.splitlines() if line.startswith("  --")).split()
    command = sheet.splitlines()[0].split()[1:]
    bare = [word for word in command if word not in ("--recipe", name)]
    for arguments in (command, [*bare, *flags]):
        typed(capsys, *arguments)
    with_recipe, with_flags = ({f.name: getattr(one, f.name) for f in fields(one)} for one in made)
    assert with_recipe.pop("recipe") == name
    assert with_flags.pop("recipe") is None
    assert with_recipe == with_flags


def test_flags_win_over_a_recipe(capsys, monkeypatch):
    made = []
    monkeypatch.setattr("tinyseed.engine.train.train", made.append)
    common = ("pretrain", "simclr", "--data", "d", "--out", "o", "--backbone", "resnet18")
    typed(capsys, *common, "--recipe=simclr-cifar", "--temperature", "0.2", "--no-small-stem")
    (config,) = made
    assert (config.temperature, config.small_stem, config.lr, config.batch_size) == (0.2, False, 1.0, 512)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("recipes", "nothing"), "recipe: nothing: unknown recipe; give one of seed-imagenet, "),
        (("recipes", "seed-cifar", "more"), "recipe: more: give one name at a time"),
        (
            ("pretrain", "swav", "--recipe", "simclr-cifar"),
            "--recipe: simclr-cifar: is for tinyseed pretrain simclr; here give one of swav-imagenet, ",
        ),
        (
            ("distill", "--recipe", "seed"),
            "--recipe: seed: unknown recipe; give one of seed-imagenet, seed-imagenet-code, ",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, told):
    code, out, err = typed(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tinyseed: error: {told}")


def test_python_refuses_the_same():
    with pytest.raises(InputError, match="is for tinyseed pretrain simclr"):
        settings_of("simclr-cifar", "pretrain moco-v2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed-imagenet", ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8, 0.5)),
        ("seed-imagenet-swav", ((0.14, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8, 0.5)),
        ("seed-imagenet-simclr", ((0.2, 1.0), (0.4, 0.4, 0.4, 0.4), 1.0, 0.0)),
    ],
)
def test_views_by_teacher_are_those_of_seeds_code(name, expected):
    """`mocov2_aug`, `swav_aug` and `simclr_aug` of its tools/utils.py."""
    drawn = augmentation(SeedSettings(**REQUIRED, **settings_of(name, "distill")))
    jitter = (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue)
    assert (drawn.crop_scale, jitter, drawn.jitter_probability, drawn.blur_probability) == expected
    assert (drawn.gray_probability, drawn.flip_probability, drawn.blur_sigma) == (0.2, 0.5, (0.1, 2.0))


def test_where_paper_and_published_code_of_seed_differ():
    paper, code = (settings_of(name, "distill") for name in ("seed-imagenet", "seed-imagenet-code"))
    changed = {name: (paper.get(name), value) for name, value in code.items() if paper.get(name) != value}
    assert changed == {"teacher_temperature": (0.01, 1e-4), "schedule": ("cosine", "cosine-epoch")}


def test_an_evaluations_sheet(capsys):
    code, out, _ = typed(capsys, "recipes", "seed-knn")
    assert code == 0
    first, *rest = out.splitlines()
    assert first == (
        "tinyseed evaluate knn --recipe seed-knn --model runs/small --train-data train/ --test-data test/"
    )
    assert {"  --k 10", "  --weighting majority", "  --model-output head"} <= set(rest)
