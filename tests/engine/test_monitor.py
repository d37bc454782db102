"""How often and on what the network is evaluated, and what an evaluation costs."""

import numpy as np
import pytest
import torch

from tinyseed.data.readers import RGB
from tinyseed.data.sources import open_source
from tinyseed.engine import run as engine
from tinyseed.engine.data import bank_size
from tinyseed.engine.monitor import BATCH, EvaluationViews, Seen
from tinyseed.engine.runs import open_runs
from tinyseed.engine.shared import Cost
from tinyseed.engine.train import train
from tinyseed.evaluation import features
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("held_out", "limit", "bank"),
    [(406, 1024, 1624), (10, 1024, 1024), (1024, 1024, 4096), (16, 16, 64), (5, 2, 8)],
)
def test_the_bank_has_four_images_for_each_that_is_held_out(held_out, limit, bank):
    assert bank_size(held_out, limit) == bank


def test_the_time_of_evaluations_stays_within_its_share():
    cost = Cost()
    assert cost.fits(0.05, 0.0)  # nothing is known of it
    cost.total, cost.last = 4.0, 2.0
    assert [cost.fits(0.05, seconds) for seconds in (119.0, 120.0)] == [False, True]


def settings(photos, out, **changes):
    small = {"batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1, "epochs": 3}
    networks = {"teacher": "test_resnet", "teacher_weights": "random", "student": "test_resnet"}
    return SeedSettings(data=(str(photos),), out=out, **networks, **small | changes)


@pytest.mark.parametrize(("share", "epochs"), [(0.0, [0, 3]), (1e9, [0, 1, 2, 3])])
def test_auto_evaluates_where_there_is_time_and_training_is_the_same(
    photos, tmp_path, monkeypatch, share, epochs
):
    monkeypatch.setattr(engine, "EVALUATION_SHARE", share)
    monkeypatch.setattr(engine, "CHECKPOINT_SHARE", share)
    runs, saved = [], []
    real, save = engine.Run.finish, engine.Run.save
    monkeypatch.setattr(engine.Run, "finish", lambda run: runs.append(run) or real(run))
    monkeypatch.setattr(engine.Run, "save", lambda run: saved.append(run.epoch) or save(run))
    train(settings(photos, tmp_path / "auto"), quiet=True)
    assert [line["epoch"] for line in runs[0].evaluations] == epochs
    assert saved == ([1, 3] if share == 0.0 else [1, 2, 3])
    train(settings(photos, tmp_path / "each", evaluate_every=1), quiet=True)
    one, other = (run.method.module.state_dict() for run in runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert runs[0].evaluations[-1] == runs[1].evaluations[-1]


def test_the_teacher_sees_each_image_once(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    seen = []
    both, alone = Teacher.both, Teacher.features
    monkeypatch.setattr(
        Teacher, "both", lambda teacher, images: seen.append(len(images)) or both(teacher, images)
    )
    monkeypatch.setattr(
        Teacher, "features", lambda teacher, images: seen.append(len(images)) or alone(teacher, images)
    )
    with open_runs({"": settings(photos, tmp_path / "run")}, quiet=True) as runs:
        (run,) = runs.all
        assert sum(seen) == len(run.data.held_out) + len(run.data.bank)
        first = run.monitor.teacher
    seen.clear()
    with open_runs({"": settings(photos, tmp_path / "two")}, quiet=True) as runs:
        (run,) = runs.all
        assert seen == []
        assert torch.equal(run.monitor.teacher.rows, first.rows)
        assert torch.equal(run.monitor.teacher.features, first.features)


def test_an_untrained_network_sees_each_image_once_over_all_runs(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    seen, real = [], Encoder.features
    monkeypatch.setattr(
        Encoder, "features", lambda encoder, images: seen.append(len(images)) or real(encoder, images)
    )
    with open_runs({"": settings(photos, tmp_path / "run")}, quiet=True) as runs:
        (run,) = runs.all
        every = len(run.data.held_out) + len(run.data.bank)
        computed = run.monitor.measure(run.method, run.method.encoder, untrained=True)
        assert sum(seen) == every
        kept = run.monitor.measure(run.method, run.method.encoder, untrained=True)
        assert sum(seen) == every
        assert kept == computed == run.monitor.measure(run.method, run.method.encoder)
        assert sum(seen) == 2 * every
        with torch.no_grad():
            next(run.method.encoder.parameters()).add_(1)
        assert run.monitor.measure(run.method, run.method.encoder, untrained=True) != computed
        assert sum(seen) == 3 * every
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)  # last digits depend on it
        run.monitor.measure(run.method, run.method.encoder, untrained=True)
        assert sum(seen) == 4 * every


@pytest.mark.parametrize("room", [0, 8 * 3 * 32 * 32, 10**9], ids=["nothing", "a part", "all"])
def test_kept_views_are_those_that_are_decoded(photos, monkeypatch, room):
    monkeypatch.setattr("tinyseed.engine.monitor.BATCH", 8)
    monkeypatch.setattr(features, "BATCH", 8)
    source = open_source((str(photos),))
    contract = InputContract(size=32)
    views, images = EvaluationViews(RGB, 0, room), Seen("held-out", source, np.arange(30))
    decoded, real = [], features.evaluation_batches
    monkeypatch.setattr(
        features, "evaluation_batches", lambda of, at, **more: decoded.append(len(at)) or real(of, at, **more)
    )
    first, second = (list(views.batches(images, contract, len, keep_them=True)) for _ in range(2))
    assert BATCH == 128
    assert decoded == {0: [30, 30], 10**9: [30]}.get(room, [30, 22])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.indices, other.indices)
    assert torch.cat([batch.indices for batch in second]).tolist() == list(range(30))


def test_many_images_are_seen_with_folded_batch_norms():
    encoder = Encoder(build_backbone("resnet10t", seed=0, image_size=32)).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    few, many = (
        features.folded(encoder, count) for count in (features.FOLDED_FROM - 1, features.FOLDED_FROM)
    )
    with torch.no_grad():
        plain = encoder.features(images)
        assert torch.equal(few(images), plain)
        torch.testing.assert_close(many(images), plain, rtol=1e-4, atol=1e-4)
    assert "BatchNorm" not in str(many.__self__)
    assert "BatchNorm" in str(encoder)
