"""Runs on images of other bands than red, green and blue, from the settings to the exported file."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tinyseed.checkpoints.saved import load_encoder
from tinyseed.data.loader import evaluation_batches
from tinyseed.data.readers import BandReader, reader_for
from tinyseed.data.sources import open_source
from tinyseed.engine import train as engine
from tinyseed.engine.data import measured
from tinyseed.engine.train import train
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation import knn
from tinyseed.evaluation.run import evaluate
from tinyseed.methods.distillation import teacher_bands
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.methods.simclr import SimCLRSettings
from tinyseed.methods.swav import SwAVSettings
from tinyseed.models.contract import InputContract
from tinyseed.signals import Stopped

SMALL = {"batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}


def write_tiles(folder: Path, channels: int, each: int = 15) -> Path:
    """16-bit tiles of two classes that differ in the last is band alone."""
    generator = np.random.default_rng(0)
    for name in ("dry", "wet"):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            tile = generator.integers(500, 3000, (channels, 36, 40)).astype(np.uint16)
            top, left = generator.integers(2, 16, 2)
            tile[-1, top : top + 18, left : left + 18] += 6000 if name == "wet" else 0
            if channels == 1:
                Image.fromarray(tile[0]).save(folder / name / f"{number:02d}.png")
            else:
                settings = {"photometric": "minisblack", "compression": "deflate"}
                tifffile.imwrite(
                    folder / name / f"{number:02d}.tif", tile, planarconfig="separate", **settings
                )
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("bands") / "tiles", 4)


def config(data: Path, out: Path, **changes) -> SeedSettings:
    settings = {"teacher": "resnet10t", "teacher_weights": "random", "student": "mobilenetv3_small_050"}
    settings |= {"channels": 4, "teacher_bands": (3, 2, 1), "pixel_range": (0.0, 10000.0), "epochs": 2}
    return SeedSettings(data=(str(data),), out=out, **settings | SMALL | changes)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiles, tmp_path_factory):
    """A whole run, and the batch that its last step saw."""
    out = tmp_path_factory.mktemp("bands") / "run"
    seen = []
    real = engine.train_step

    def watched(runs, batches):
        outputs = real(runs, batches)
        seen.append(runs[0])
        return outputs

    engine.train_step = watched
    try:
        summary = train(config(tiles, out, val_data=(str(tiles),)), quiet=True)
    finally:
        engine.train_step = real
    return out, summary, seen[-1]


def test_a_run_is_complete_and_its_student_loads_in_plain_timm(tiles, finished):
    out, summary, _ = finished
    assert summary["unreadable_images"] == 0
    assert all(np.isfinite(line["loss"]) for line in lines(out) if "loss" in line)
    assert {"knn_top1", "knn_top1_teacher", "neighbour_agreement"} <= summary.keys()
    student = load_encoder(out)
    written = json.loads((out / "config.json").read_text())
    assert student.input.channels == 4
    assert list(student.input.mean) == written["channel_mean"]
    assert list(student.input.std) == written["channel_std"]
    assert student.input.pixel_range == (0.0, 10000.0)
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0, in_chans=4).eval()
    plain.load_state_dict(load_file(out / "student.safetensors"), strict=True)
    tile = tifffile.imread(next((tiles / "wet").iterdir()))[:, :32, :32].astype(np.float32) / 10000
    image = (torch.from_numpy(tile) - torch.tensor(student.input.mean).view(4, 1, 1)) / torch.tensor(
        student.input.std
    ).view(4, 1, 1)
    torch.testing.assert_close(plain(image[None]), student.features(image[None]))


def test_the_measured_figures_are_those_of_the_images(tiles, finished):
    """The evaluation view of 36 px cut to 32 shows nearly all of each tile; against NumPy on the same views."""
    written = json.loads((finished[0] / "config.json").read_text())
    source = open_source([str(tiles)])
    shown = reader_for(4, (0.0, 10000.0))
    (batch,) = evaluation_batches(source, np.arange(30), size=32, reader=shown)
    pixels = batch.pixels.numpy().astype(np.float64)
    np.testing.assert_allclose(written["channel_mean"], pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(written["channel_std"], pixels.std((0, 2, 3)), rtol=1e-5)
    assert written["channel_mean"][3] > written["channel_mean"][0] + 0.05


def test_a_step_is_the_formula_with_the_chosen_bands(finished):
    """The teacher sees bands 3, 2 and 1 of the view as red, green and blue; the student all four."""
    method = finished[2].method
    method.module.eval()
    view = torch.rand(5, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    output = method.step(method.module, (view,), step=0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = torch.stack([view[:, 2], view[:, 1], view[:, 0]], 1)
    teacher = method.teacher((rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1)).double().numpy()
    contract = method.encoder.input
    own_mean, own_std = torch.tensor(contract.mean).view(4, 1, 1), torch.tensor(contract.std).view(4, 1, 1)
    student = method.module((view - own_mean) / own_std).detach().double().numpy()
    rows = method.queue.rows().double().numpy()

    def log_p(vectors: np.ndarray, temperature: float) -> np.ndarray:
        own = (vectors * teacher).sum(1, keepdims=True)
        scores = np.concatenate([own, vectors @ rows.T], 1) / temperature
        shifted = scores - scores.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    expected = -(np.exp(log_p(teacher, 0.01)) * log_p(student, 0.2)).sum(1).mean()
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(output.rows.numpy(), teacher, atol=1e-5)


def test_the_monitor_measures_the_teacher_on_its_bands(tiles, finished):
    run = finished[2]
    shown = run.data.reader
    (batch,) = evaluation_batches(open_source([str(tiles)]), np.arange(30), size=32, reader=shown)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = batch.pixels[:, [2, 1, 0]]
    features = run.method.teacher.features((rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(run.monitor.teacher.features, features, rtol=1e-4, atol=1e-4)


def test_knn_reads_the_bands_as_the_model_was_trained(tiles, finished, tmp_path):
    copy = tmp_path / "copy"  # of one class more, so that it is other data, and each image finds itself
    shutil.copytree(tiles, copy)
    shutil.copytree(next(folder for folder in tiles.iterdir() if folder.is_dir()), copy / "zzz")
    data = {"train_data": (str(tiles),), "test_data": (str(copy),)}
    report = evaluate(knn.SPEC, knn.KnnSettings(model=str(finished[0]), k=(1,), **data))
    assert report.unreadable_images == 0
    images = len(list(tiles.rglob("*.tif*")))
    assert report.results[0]["top1"] == pytest.approx(100 * images / report.test_images)


def test_knn_on_files_of_other_bands_says_why_it_cannot(finished, photos):
    data = {"train_data": (str(photos),), "test_data": (str(photos),)}
    settings = knn.KnnSettings(model=str(finished[0]), **data)
    with pytest.raises(
        RunError, match=r"no image could be read.*\.jpg: the file has 3 bands, 4 were asked for"
    ):
        evaluate(knn.SPEC, settings)


def test_a_stopped_run_goes_on_bit_for_bit(tiles, tmp_path, monkeypatch):
    train(config(tiles, tmp_path / "whole"), quiet=True)
    real = engine.train_step

    def stops_in_the_second(runs, batches):
        outputs = real(runs, batches)
        if runs[0].step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops_in_the_second)
    with pytest.raises(Stopped):
        train(config(tiles, tmp_path / "broken"), quiet=True)
    monkeypatch.undo()
    # A resumed run takes the figures that it began with; it does not measure them anew.
    monkeypatch.setattr("tinyseed.engine.shared.measured", None)
    train(config(tiles, tmp_path / "broken", resume=True), quiet=True)
    whole, broken = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["module"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    whole, broken = (
        [line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("whole", "broken")
    )
    assert whole == broken
    assert len(whole) == 6


@pytest.mark.parametrize(("channels", "seen"), [(1, (1, 1, 1)), (10, (1, 2, 3)), (2, (1, 2, 2))])
def test_other_numbers_of_channels(tmp_path, channels, seen):
    data = write_tiles(tmp_path / "tiles", channels, each=8)
    given = seen if channels == 2 else ()
    changes = {"channels": channels, "teacher_bands": given, "pixel_range": (), "epochs": 2}
    summary = train(config(data, tmp_path / "run", **changes), quiet=True)
    assert summary["steps"] == 2
    assert load_encoder(tmp_path / "run").input.channels == channels
    wanted = teacher_bands(config(data, tmp_path, **changes), InputContract())
    assert wanted == tuple(band - 1 for band in seen)


def test_a_teacher_of_four_channels_sees_them_all(tiles, tmp_path):
    moco = {"channels": 4, "pixel_range": (0.0, 10000.0), "epochs": 1, "backbone": "resnet10t"}
    train(MoCoSettings(data=(str(tiles),), out=tmp_path / "teacher", **moco, **SMALL), quiet=True)
    changes = {
        "teacher": str(tmp_path / "teacher"),
        "teacher_weights": None,
        "teacher_bands": (),
        "epochs": 1,
    }
    train(config(tiles, tmp_path / "student", **changes), quiet=True)
    with pytest.raises(InputError, match=r"pixel_range=0 5000: the teacher was trained with 0 10000"):
        train(config(tiles, tmp_path / "other", **changes | {"pixel_range": (0.0, 5000.0)}), quiet=True)
    with pytest.raises(InputError, match=r"teacher_bands=3 2 1: the teacher sees 4 channels; give exactly"):
        train(config(tiles, tmp_path / "other", **changes | {"teacher_bands": (3, 2, 1)}), quiet=True)


@pytest.mark.parametrize("method", [SimCLRSettings, SwAVSettings])
def test_the_other_methods_take_bands(tiles, tmp_path, method):
    settings = {"channels": 4, "pixel_range": (0.0, 10000.0), "epochs": 1, "backbone": "resnet10t"}
    crops = {"small_crops": 2, "small_crop_size": 24} if method is SwAVSettings else {}
    train(method(data=(str(tiles),), out=tmp_path / "run", **settings, **crops, **SMALL), quiet=True)
    assert load_encoder(tmp_path / "run").input.channels == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"teacher_bands": (5, 2, 1)},
            "teacher_bands=5: the images have 4 channels; give numbers from 1 to 4",
        ),
        ({"teacher_bands": (0, 2, 1)}, "teacher_bands=0: the images have 4 channels"),
        ({"teacher_bands": (2, 1)}, "teacher_bands=2 1: the teacher sees 3 channels; give exactly"),
        (
            {"channels": 2, "teacher_bands": ()},
            "teacher_bands: missing: the teacher sees 3 channels, the images",
        ),
        ({"channels": 0, "teacher_bands": ()}, "channels=0: give a number from 1 to 4096"),
        ({"channels": 5}, "channels=5: none of 27 images can be read, the last is "),
        ({"pixel_range": (3.0, 3.0)}, "pixel_range=3 3: give two numbers, the lower first"),
        ({"pixel_range": (9.0, 3.0)}, "pixel_range=9 3: give two numbers"),
        ({"pixel_range": (9.0,)}, "pixel_range=9: give two numbers"),
        ({"pixel_range": (0.0, float("inf"))}, "pixel_range=0 inf: give two numbers"),
        ({"pixel_range": (60000.0, 65000.0)}, "pixel_range=60000 65000: every pixel becomes 0"),
        ({"channel_mean": (0.5,)}, "channel_mean=0.5: give 4 numbers, one for each channel"),
        (
            {"channel_mean": (0.5,) * 4},
            "channel_std: missing: give the mean and the standard deviation, or neither",
        ),
        (
            {"channel_mean": (0.5,) * 4, "channel_std": (0.0,) * 4},
            "channel_std=0 0 0 0: give numbers above 0",
        ),
    ],
)
def test_wrong_settings_are_told_in_one_line_before_anything_is_written(tiles, tmp_path, changes, told):
    out = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        train(config(tiles, out, **changes), quiet=True)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_files_of_other_bands_go_to_quarantine(tmp_path):
    data = write_tiles(tmp_path / "tiles", 4)
    tifffile.imwrite(data / "dry" / "00.tif", np.zeros((3, 36, 40), np.uint16), photometric="minisblack")
    train(config(data, tmp_path / "run", val_data=(str(data),)), quiet=True)
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines())
    assert line["name"].endswith("00.tif")
    assert line["reason"] == "the file has 3 bands, 4 were asked for"


def test_given_figures_are_not_measured_and_wrong_files_end_the_run(tiles, tmp_path):
    five = {"channels": 5, "channel_mean": (0.5,) * 5, "channel_std": (0.2,) * 5}
    with pytest.raises(RunError, match="the file has 4 bands, 5 were asked for"):
        train(config(tiles, tmp_path / "run", **five), quiet=True)


def test_a_missing_reader_is_told_before_anything_is_written(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyseed.data.bands.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tifffile and imagecodecs: pip install tinyseed\[bands\]"):
        train(config(tiles, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_channel_that_never_changes_stays_so(tmp_path):
    data = write_tiles(tmp_path / "tiles", 3, each=3)
    for file in data.rglob("*.tif"):
        tile = np.concatenate([tifffile.imread(file), np.full((1, 36, 40), 700, np.uint16)])
        tifffile.imwrite(file, tile, photometric="minisblack")
    mean, std = measured(open_source([str(data)]), np.arange(6), BandReader(4), 32)
    assert mean[3] == pytest.approx(700 / 65535, rel=1e-5)
    assert std[3] == 1
    assert max(std[:3]) < 0.2


def test_a_list_from_python_is_taken(tiles, tmp_path):
    from tinyseed import api

    settings = {
        "teacher_weights": "random",
        "channels": 4,
        "pixel_range": [0, 10000],
        "teacher_bands": [4, 4, 4],
    }
    api.distill(
        data=tiles, teacher="resnet10t", student="mobilenetv3_small_050", out=tmp_path / "run", epochs=1,
        **settings, **SMALL,
    )  # fmt: skip
    assert load_encoder(tmp_path / "run").input.pixel_range == (0, 10000)


def test_settings_come_from_the_command_line():
    from tinyseed.arguments import parse

    given = ["--data", "d", "--out", "o", "--teacher", "t", "--student", "s", "--channels", "4"]
    given += ["--pixel-range", "-100", "3000.5", "--teacher-bands", "4", "3", "2"]
    parsed = parse(SeedSettings, given, command="tinyseed distill", example="", about="")
    assert (parsed.channels, parsed.pixel_range, parsed.teacher_bands) == (4, (-100.0, 3000.5), (4, 3, 2))
