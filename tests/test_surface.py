"""What other people's scripts rely on: flags, Python signatures, files of a run folder and their keys.

surface.json holds what there was before. Names may be added, none may go away; a renamed one works as an alias.
"""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

import tinyseed
from tinyseed import cli
from tinyseed.arguments import parse
from tinyseed.caches import CacheSettings, FreeSettings
from tinyseed.evaluations import EVALUATIONS
from tinyseed.methods.catalog import METHODS
from tinyseed.settings.base import aliases, flag
from tinyseed.settings.demo import DemoSettings
from tinyseed.studies.settings import StudySettings
from tinyseed.teachers import TeachersSettings

BEFORE = json.loads((Path(__file__).parent / "surface.json").read_text(encoding="utf-8"))

SETTINGS = {
    **{spec.command: spec.settings for spec in METHODS},
    **{f"evaluate {spec.name}": spec.settings for spec in EVALUATIONS},
    "teachers FILE": TeachersSettings,
    "demo": DemoSettings,
    "cache": CacheSettings,
    "cache free": FreeSettings,
    "recipes run NAME": StudySettings,
}


def flags(settings: type) -> set[str]:
    return {flag(name) for name in [*(field.name for field in fields(settings)), *aliases(settings)]}


@pytest.mark.parametrize("command", BEFORE["flags"])
def test_every_former_flag_is_there(command):
    beside = (
        {"--grid", "--method"} if command.split()[0] == "distill" else set()
    )  # make several settings of one
    assert set(BEFORE["flags"][command]) <= flags(SETTINGS[command]) | beside


def test_the_index_of_several_runs_is_there(made):
    before = BEFORE["run"]["several"]
    entries = [
        entry
        for name in before["files"]
        for entry in json.loads((made / "several" / name).read_text())["runs"]
    ]
    assert [entry["name"] for entry in entries] == ["resnet10t", "test_resnet"]
    assert set(before["keys"]) - {"error", "neighbour_agreement"} <= set(entries[0])


def test_every_former_verb_is_there():
    assert {command.split()[0] for command in BEFORE["flags"]} | {"recipes"} == set(cli.VERBS)


@pytest.mark.parametrize("name", BEFORE["python"])
def test_every_former_parameter_is_there(name):
    now = list(inspect.signature(getattr(tinyseed, name)).parameters)
    assert set(BEFORE["python"][name]) <= set(now)
    # Those that come first may be passed by position.
    assert now[0] == BEFORE["python"][name][0]


def test_every_former_public_name_is_there():
    assert set(BEFORE["top"]) <= set(tinyseed.__all__)


def test_a_former_name_fills_the_renamed_setting():
    (retention,) = (spec for spec in EVALUATIONS if spec.name == "retention")
    given = ["--student", "s", "--teacher", "t", "--train-data", "a", "--test-data", "b"]
    common = {"command": "tinyseed", "example": "", "about": ""}
    for typed in ("--alone", "--baseline"):
        assert parse(retention.settings, [*given, typed, "x"], **common).baseline == "x"


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory) -> Path:
    """A distilled and a pre-trained run, and evaluations of the first."""
    folder = tmp_path_factory.mktemp("surface")
    small = {"epochs": 1, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32"}
    common = {"data": photos, "log_every": 1, "queue_size": 24, **small}
    teacher = {"teacher": "resnet10t", "teacher_weights": "random"}
    tinyseed.distill(student="resnet10t", out=folder / "seed", **teacher, **common)
    tinyseed.distill(student=["resnet10t", "test_resnet"], out=folder / "several", **teacher, **common)
    tinyseed.pretrain("moco-v2", backbone="resnet10t", out=folder / "moco", **common)
    data = {"train_data": photos, "test_data": photos}
    tinyseed.evaluate("knn", model=folder / "seed", k=[3], **data)
    models = {"student": folder / "seed", "teacher": folder / "moco"}
    tinyseed.evaluate("retention", **models, quick=True, **data)
    return folder


@pytest.mark.parametrize("run", ["seed", "moco"])
def test_a_run_folder_has_every_former_file_and_key(made, run):
    before, out = BEFORE["run"][run], made / run
    assert all((out / name).is_file() for name in before["files"])
    for name, keys in before["keys"].items():
        lines = (out / name).read_text().splitlines() if name.endswith("l") else [(out / name).read_text()]
        now = {key for line in lines for key in json.loads(line)}
        assert set(keys) <= now, name


@pytest.mark.parametrize("name", ["knn", "retention"])
def test_a_report_has_every_former_key(made, name):
    before = BEFORE["run"][f"evaluate-{name}.json"]
    now = json.loads((made / "seed" / f"evaluate-{name}.json").read_text())
    assert set(before["keys"]) <= now.keys()
    assert set(before["results"]) <= now["results"][0].keys()
    assert (made / "seed" / f"evaluate-{name}.md").is_file()
