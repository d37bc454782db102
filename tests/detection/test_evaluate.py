import dataclasses
import errno
import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import tinyseed
from tinyseed.cli import main
from tinyseed.detection import trial
from tinyseed.detection.detector import build_detector
from tinyseed.detection.evaluate import SPEC
from tinyseed.detection.report import DetectReport
from tinyseed.detection.settings import DetectSettings
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.run import evaluate
from tinyseed.signals import Stopped, StopRequest

pytest.importorskip("pycocotools")

SURFACE = Path(__file__).parents[1] / "surface.json"
MODEL = "random:mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _small_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same path with a sixteenth of the pyramid and few proposals and detections, for time."""

    def build(*given, **settings):
        made = build_detector(*given, width=16, **settings)
        made.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        made.roi_heads.detections_per_img = 10
        made.rpn._post_nms_top_n = {"training": 100, "testing": 100}
        return made

    monkeypatch.setattr(trial, "build_detector", build)


def settings_for(data, out, **settings):
    usual = {"schedule": 2, "batch_size": 1, "image_size": (64,), "limit": 3, "out": out, "format": "voc"}
    return DetectSettings(model=MODEL, train_data=(str(data),), **(usual | settings))


def run(settings, **asked) -> DetectReport:
    report = evaluate(SPEC, settings, **asked)
    assert isinstance(report, DetectReport)
    return report


def untimed(report):
    """A report without the seconds of its results and of itself."""
    results = tuple(dataclasses.replace(result, seconds=0) for result in report.results)
    return dataclasses.replace(report, seconds=0, results=results)


def test_start_points_stand_side_by_side_and_finished_ones_are_kept(squares_voc, tmp_path):
    settings = settings_for(squares_voc, tmp_path, compare=("random", "random:resnet10t"))
    report = run(settings)
    assert [one.start for one in report.results] == [MODEL, "random", "random:resnet10t"]
    assert [one.backbone for one in report.results] == ["mobilenetv3_small_050"] * 2 + ["resnet10t"]
    assert (report.train_images, report.test_images, report.steps, report.lr) == (3, 3, 2, 0.02 / 16)
    assert report.classes == ("blue", "red")
    content = json.loads((tmp_path / "evaluate-detect.json").read_text())
    assert content == json.loads(json.dumps(dataclasses.asdict(report)))
    former = json.loads(SURFACE.read_text())["run"]["evaluate-detect.json"]
    assert set(former["keys"]) <= content.keys()
    assert set(former["results"]) == content["results"][0].keys()
    assert content["results"][0]["box"].keys() == {"ap", "ap50", "ap75", "per_class"}
    page = (tmp_path / "evaluate-detect.md").read_text()
    assert "| random:resnet10t | resnet10t |" in page
    assert "| red |" in page
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "detect").iterdir()}
    assert len(done) == 2  # a random model is its own random start point, which is trained once
    itself, random = (dataclasses.replace(one, start="") for one in report.results[:2])
    assert itself == random
    assert all(name.endswith(".json") for name in done)
    assert dataclasses.replace(run(settings), seconds=report.seconds) == report
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "detect").iterdir()} == done


def test_the_report_says_what_was_measured_and_with_what(squares_voc, tmp_path):
    settings = settings_for(squares_voc, tmp_path, schedule=1, limit=1)
    report = run(settings)
    assert report.evaluation == "detect"
    assert report.settings["train_data"] == (str(squares_voc),)
    assert report.settings["norm"] == "trained"
    assert report.versions.keys() >= {"python", "torch", "tinyseed"}
    assert report.data.keys() == {"train", "test"}
    assert report.weights
    assert report.seconds > 0
    assert (report.train_boxes, report.test_boxes) == (2, 2)
    other = settings_for(squares_voc, tmp_path, limit=2)
    assert SPEC.open_data is not None
    assert SPEC.open_data(settings).fingerprints == report.data
    assert SPEC.open_data(other).fingerprints != report.data
    assert "tinyseed evaluate detect --model" in (tmp_path / "evaluate-detect.md").read_text()


def test_images_that_cannot_be_decoded_count_as_without_detections(voc_folder, tmp_path):
    folder = voc_folder()
    broken = folder / "JPEGImages/001.jpg"
    broken.write_bytes(broken.read_bytes()[:700])  # its header says the size
    report = run(settings_for(folder, tmp_path / "out", test_split="trainval", schedule=1))
    assert (report.test_images, report.unreadable_images) == (2, 1)
    assert "test: 1 images could not be decoded: nothing is detected in them" in report.notes


def test_a_stopped_evaluation_resumes(squares_voc, tmp_path, monkeypatch):
    settings = settings_for(squares_voc, tmp_path)
    with monkeypatch.context() as asked:
        asked.setattr(StopRequest, "asked", property(lambda _: True))
        asked.setattr(StopRequest, "at_once", nullcontext)  # the data are read before
        with pytest.raises(Stopped):
            evaluate(SPEC, settings)
    (checkpoint,) = (tmp_path / "detect").iterdir()
    assert checkpoint.suffix == ".ckpt"
    saved = checkpoint.read_bytes()
    checkpoint.write_bytes(saved[:100])
    with pytest.raises(InputError, match=r"out=.*\.ckpt: cannot be read as a checkpoint .*; delete it"):
        run(settings)
    checkpoint.write_bytes(saved)
    resumed = untimed(run(settings))
    whole = untimed(run(dataclasses.replace(settings, out=tmp_path / "other")))
    assert resumed.results == whole.results
    assert [file.suffix for file in (tmp_path / "detect").iterdir()] == [".json"]


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_checkpoint(squares_voc, tmp_path, monkeypatch):
    def full(*given, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"could not save .*\.ckpt: .*No space left on device"):
        evaluate(SPEC, settings_for(squares_voc, tmp_path, limit=1, schedule=1))
    assert not (tmp_path / "detect").exists()  # made for it, and nothing is in it


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


def test_bccd_reports_its_empty_boxes_and_stops_when_asked_to(shared_data, tmp_path, monkeypatch, capsys):
    settings = settings_for(shared_data / "bccd-voc", tmp_path, limit=None, schedule=1)
    with monkeypatch.context() as asked:
        asked.setattr(StopRequest, "asked", property(lambda _: True))
        asked.setattr(StopRequest, "at_once", nullcontext)  # the data are read before
        with pytest.raises(Stopped):
            evaluate(SPEC, settings)
    assert "boxes of zero size dropped" in capsys.readouterr().err


def test_detectron2_file_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "r18.pkl"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "detect", "--model", "random:resnet18", "--export-detectron2", str(file)])
    assert ended.value.code == 0
    assert str(file) in capsys.readouterr().out
    assert "stem.conv1.weight" in pickle.loads(file.read_bytes())["model"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_data": ()}, "train_data: missing"),
        ({"format": None}, "format: missing: give voc or coco"),
        ({"masks": True}, "masks=given"),
        ({"schedule": 0}, "schedule=0: give a number from 1 to"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": (16,)}, "image_size=16: give a number from 32 to"),
        ({"limit": 0}, "limit=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"seed": -1}, "seed=-1"),
        ({"out": None}, "out: missing: give a folder for the report"),
        ({"format": "coco", "train_data": ("a", "b")}, "give one folder"),
        ({"compare": ("random:test_vit",)}, "compare=test_vit: has no feature maps at stride 4, 8, 32"),
        ({"train_split": "nope"}, "train_split=nope: no such split"),
        ({"test_split": "nope"}, "test_split=nope: no such split"),
        ({"test_data": ("nowhere",)}, "test_data=nowhere: no such folder"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(squares_voc, tmp_path, settings, message):
    with pytest.raises(InputError) as refused:
        evaluate(SPEC, dataclasses.replace(settings_for(squares_voc, tmp_path), **settings))
    assert str(refused.value).startswith(message) or message in str(refused.value)
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
    progress, error = capsys.readouterr().err.splitlines()
    assert progress == "reading annotations"
    assert error.startswith("tinyseed: error: --model: test_vit: has no feature maps")
