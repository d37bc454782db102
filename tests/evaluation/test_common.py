"""Labels and their absence; features kept in pieces; reports that say how to repeat them."""

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from tinyseed.evaluation.bank import embed_side
from tinyseed.evaluation.command import KnnConfig, embed_photos, run_knn
from tinyseed.evaluation.common import DataConfig, check, open_sides
from tinyseed.evaluation.state import State

from tinyseed.arguments import parse
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation import bank as module
from tinyseed.evaluation import reporting


def sides_of(train, test, **more):
    return open_sides(DataConfig(train_data=(str(train),), test_data=(str(test),), **more))


def test_both_sides_are_numbered_as_the_training_data(colours):
    sides = sides_of(*colours)
    assert sides.classes == ("blue", "green", "red")
    assert (len(sides.train), len(sides.test), sides.same, sides.notes) == (72, 24, False, ())
    assert np.bincount(sides.test.labels).tolist() == [8, 8, 8]


def test_the_same_images_are_noticed_and_so_is_a_limit(colours):
    train, _ = colours
    assert sides_of(train, train).same
    limited = sides_of(train, train, limit=10)
    assert (len(limited.train), limited.same) == (10, True)


def test_classes_that_one_side_lacks_are_told_and_counted(changed):
    train, test = changed
    shutil.rmtree(train / "green")
    shutil.rmtree(test / "red")
    sides = sides_of(train, test)
    absent, untested = sides.notes
    assert absent.startswith("8 test images are of classes without a training image (green)")
    assert untested.startswith("1 of 2 classes have no test image (red)")
    assert set(sides.test.labels.tolist()) == {0, 3}  # blue, and one beyond the training classes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda train, test: [shutil.rmtree(train / name) for name in ("red", "blue")], "--train-data: "),
        (lambda train, test: [shutil.rmtree(test / name) for name in ("red", "blue")], "--test-data: "),
    ],
)
def test_missing_labels_are_one_line(changed, change, told):
    change(*changed)
    with pytest.raises(InputError, match="has no labels") as caught:
        sides_of(*changed)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused(colours):
    train, test = colours
    with pytest.raises(InputError, match="--train-data: a single class"):
        sides_of(train, test, limit=1)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"limit": 0}, "--limit: 0"),
        ({"workers": -1}, "--workers: -1"),
        ({"image_size": 4}, "--image-size: 4"),
    ],
)
def test_settings_out_of_range_are_refused(setting, told):
    with pytest.raises(InputError) as caught:
        check(DataConfig(train_data=("a",), test_data=("b",), **setting))
    assert str(caught.value).startswith(told)


@pytest.fixture
def pieces(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


def test_features_in_pieces_are_those_in_one_and_go_on_where_they_stopped(
    colours, small, pieces, monkeypatch
):
    side = sides_of(*colours).train
    whole = embed_photos(small, side.source, 32)
    embedded = []
    honest = module.embed

    def stops(network, batches, **settings):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(honest(network, batches, **settings))
        return embedded[-1]

    monkeypatch.setattr(module, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        embed_side(small, side)
    again = []
    monkeypatch.setattr(module, "embed", lambda *given, **more: again.append(0) or honest(*given, **more))
    photos = embed_side(small, side)
    assert len(again) == 3  # of five pieces two were there
    torch.testing.assert_close(photos.features, whole.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(photos.labels, whole.labels)
    assert torch.equal(photos.indices, torch.arange(72))
    monkeypatch.setattr(module, "embed", None)
    assert torch.equal(embed_side(small, side).features, photos.features)


def test_half_precision_is_kept_as_such(colours, small, pieces):
    side = sides_of(*colours).test
    half, full = embed_side(small, side, precision="16"), embed_side(small, side, precision="32")
    assert (half.features.dtype, full.features.dtype) == (torch.float16, torch.float32)
    assert torch.equal(half.features, full.features.half())
    assert torch.equal(embed_side(small, side, precision="16").features, half.features)


def test_features_beyond_half_precision_are_told(colours, small, pieces, monkeypatch):
    honest = small.features
    monkeypatch.setattr(small, "features", lambda images: honest(images) * 1e7)
    with pytest.raises(RunError, match="--bank-precision 32"):
        embed_side(small, sides_of(*colours).test, precision="16")


def test_unreadable_images_are_left_out_and_counted(changed, small, pieces):
    train, test = changed
    for number in range(16):
        (train / "blue" / f"train-blue-{number:02d}.png").write_bytes(b"no image")
    sides = sides_of(train, test)
    photos = embed_side(small, sides.train)
    assert photos.unreadable == 16
    assert torch.equal(photos.indices, torch.arange(16, 72))
    assert np.bincount(photos.labels.numpy()).tolist() == [8, 24, 24]
    for file in test.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match="no image could be read"):
        embed_side(small, sides.test)


def test_knn_leaves_one_out_where_both_sides_are_the_same(colours, settings, tmp_path):
    train, _ = colours
    given = settings | {"test_data": (str(train),), "limit": 12}
    report = run_knn(KnnConfig(model="random:resnet10t", k=(1, 11), weighting="both", out=tmp_path, **given))
    assert any(note.startswith("leave-one-out") for note in report.notes)
    assert [(row["k"], row["weighting"]) for row in report.results] == [
        (1, "weighted"),
        (11, "weighted"),
        (1, "majority"),
        (11, "majority"),
    ]
    with pytest.raises(InputError, match="--k: 12: there are 11 labelled images to vote"):
        run_knn(KnnConfig(model="random:resnet10t", k=(12,), **given))


def test_a_report_says_all_that_repeats_it(settings, tmp_path):
    config = KnnConfig(model="random:resnet10t", k=(3,), out=tmp_path / "a b", limit=20, **settings)
    report = run_knn(config)
    content = json.loads((tmp_path / "a b" / "evaluate-knn.json").read_text())
    assert content == json.loads(json.dumps(dataclasses.asdict(report)))
    assert content["settings"]["limit"] == 20
    assert len(content["data"]["train"]) == 24
    assert {"torch", "timm", "tinyseed", "python"} <= content["versions"].keys()
    page = (tmp_path / "a b" / "evaluate-knn.md").read_text()
    assert "| 3 | weighted |" in page
    (line,) = [line for line in page.splitlines() if line.startswith("    tinyseed evaluate knn")]
    words = shlex.split(line)[3:]
    assert parse(KnnConfig, words, command="x", example="x", about="x") == config


def test_without_a_folder_nothing_is_written_and_that_is_told(settings):
    report = run_knn(KnnConfig(model="random:resnet10t", k=(3,), limit=20, **settings))
    assert any("give --out" in note for note in report.notes)


def test_tables_have_a_row_for_each_and_the_spread_beside_the_mean():
    head, cells = reporting.columns([{"k": 1, "top1": 50.0, "top1_std": 1.25}, {"k": 20, "top1": 7.0}])
    assert head == ["k", "top-1 %"]
    assert cells == [["1", "50.0 ± 1.2"], ["20", "7.0"]]
    assert len({len(line) for line in reporting.text_table(head, cells)}) == 1


def test_a_stopped_evaluation_remembers_its_finished_parts():
    state = State("test", 1)
    assert state.remember("part", lambda: {"top1": 3.0}) == {"top1": 3.0}
    assert State("test", 1).remember("part", lambda: {"top1": 4.0}) == {"top1": 3.0}
    assert State("test", 2).remember("part", lambda: {"top1": 5.0}) == {"top1": 5.0}
    state.clear()
    assert state.remember("part", lambda: {"top1": 6.0}) == {"top1": 6.0}
    state.clear()
