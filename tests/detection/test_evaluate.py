import dataclasses
import json
import pickle
from functools import partial

import pytest
from tinyseed.evaluation.detect import command
from tinyseed.evaluation.detect.command import evaluate_detect
from tinyseed.evaluation.detect.config import DetectConfig
from tinyseed.evaluation.detect.network import build_detector

import tinyseed
from tinyseed.cli import main
from tinyseed.errors import InputError

pytest.importorskip("pycocotools")

MODEL = "random:mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _narrow_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same path with a sixteenth of the pyramid, for time."""
    monkeypatch.setattr(command, "build_detector", partial(build_detector, width=16))


def config(data, out, **settings):
    usual = {"schedule": 2, "batch_size": 1, "image_size": (64,), "limit": 3, "out": out, "format": "voc"}
    return DetectConfig(model=MODEL, train_data=(str(data),), **(usual | settings))


def test_start_points_stand_side_by_side_and_finished_ones_are_kept(squares_voc, tmp_path):
    settings = config(squares_voc, tmp_path, compare=("random", "random:resnet10t"))
    report = evaluate_detect(settings, quiet=True)
    assert report is not None
    assert [one.start for one in report.results] == [MODEL, "random", "random:resnet10t"]
    assert [one.backbone for one in report.results] == ["mobilenetv3_small_050"] * 2 + ["resnet10t"]
    assert (report.train_images, report.test_images, report.steps, report.lr) == (3, 3, 2, 0.02 / 16)
    assert report.classes == ("blue", "red")
    content = json.loads((tmp_path / "evaluate-detect.json").read_text())
    assert content == json.loads(json.dumps(dataclasses.asdict(report)))
    assert content["results"][0]["box"].keys() == {"ap", "ap50", "ap75", "per_class"}
    page = (tmp_path / "evaluate-detect.md").read_text()
    assert "| random:resnet10t | resnet10t |" in page
    assert "| red |" in page
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "detect").iterdir()}
    assert len(done) == 3
    assert (
        len({name.removesuffix(".json")[-12:] for name in done}) == 2
    )  # a random model's random twin is itself
    itself, twin = (dataclasses.replace(one, start="", seconds=0) for one in report.results[:2])
    assert itself == twin
    assert all(name.endswith(".json") for name in done)
    assert evaluate_detect(settings, quiet=True) == report
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "detect").iterdir()} == done


def test_a_stopped_evaluation_goes_on(squares_voc, tmp_path):
    settings = config(squares_voc, tmp_path)
    assert evaluate_detect(settings, stop=lambda: True, quiet=True) is None
    assert [file.suffix for file in (tmp_path / "detect").iterdir()] == [".ckpt"]
    resumed = evaluate_detect(settings, quiet=True)
    whole = evaluate_detect(dataclasses.replace(settings, out=tmp_path / "other"), quiet=True)
    assert resumed is not None
    assert whole is not None
    assert dataclasses.replace(resumed.results[0], seconds=0) == dataclasses.replace(
        whole.results[0], seconds=0
    )
    assert [file.suffix for file in (tmp_path / "detect").iterdir()] == [".json"]


def test_from_the_command_line_with_masks(squares_coco, tmp_path, capsys):
    arguments = [
        "--model",
        MODEL,
        "--train-data",
        squares_coco,
        "--format",
        "coco",
        "--masks",
        "--schedule",
        1,
    ]
    arguments += ["--batch-size", 1, "--image-size", 64, "--limit", 2, "--norm", "frozen", "--out", tmp_path]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "detect", *map(str, arguments)])
    assert ended.value.code == 0
    table = capsys.readouterr().out
    assert "Mask R-CNN, 1 steps of 1 images at 64 px, frozen norms" in table
    assert "mask AP" in table
    assert "compare with --norm trained" in table  # an untrained network's norms are worth little frozen


def test_python_has_it_too(squares_voc, tmp_path):
    report = tinyseed.evaluate(
        "detect",
        model=MODEL,
        train_data=squares_voc,
        format="voc",
        schedule=1,
        batch_size=1,
        image_size=64,
        limit=1,
        out=tmp_path,
    )
    assert len(report.results) == 1


def test_bccd_tells_its_two_boxes(shared_data, tmp_path):
    settings = config(shared_data / "bccd-voc", tmp_path, limit=None, schedule=1)
    stopped = []

    def stop():
        stopped.append(True)
        return True

    assert evaluate_detect(settings, stop=stop, quiet=True) is None
    assert stopped


def test_detectron2_file_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "r18.pkl"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "detect", "--model", "random:resnet18", "--export-detectron2", str(file)])
    assert ended.value.code == 0
    assert str(file) in capsys.readouterr().out
    assert "stem.conv1.weight" in pickle.loads(file.read_bytes())["model"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train_data": ()}, "--train-data: missing"),
        ({"format": None}, "--format: missing: give voc or coco"),
        ({"masks": True}, "--masks: given"),
        ({"schedule": 0}, "--schedule: 0: give a number of at least 1"),
        ({"batch_size": 0}, "--batch-size: 0"),
        ({"image_size": (16,)}, "--image-size: 16: give a number of at least 32"),
        ({"limit": 0}, "--limit: 0"),
        ({"lr": 0.0}, "--lr: 0.0"),
        ({"seed": -1}, "--seed: -1"),
        ({"out": None}, "--out: missing: the model is no run folder"),
        ({"format": "coco", "train_data": ("a", "b")}, "give one folder"),
        ({"compare": ("random:test_vit",)}, "--compare: test_vit: has no feature maps at stride 4, 8, 32"),
        ({"train_split": "nope"}, "--train-split: nope: no such split"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(squares_voc, tmp_path, settings, told):
    with pytest.raises(InputError) as refused:
        evaluate_detect(dataclasses.replace(config(squares_voc, tmp_path), **settings), quiet=True)
    assert str(refused.value).startswith(told) or told in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_one_line_for_people(squares_voc, tmp_path, capsys):
    arguments = [
        "--model",
        "random:test_vit",
        "--train-data",
        squares_voc,
        "--format",
        "voc",
        "--out",
        tmp_path,
    ]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "detect", *map(str, arguments)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("tinyseed: error: --model: test_vit: has no feature maps")
    assert told.count("\n") == 1
