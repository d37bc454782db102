import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tinyseed.engine.run import _warmup_start
from tinyseed.engine.schedule import Schedule, detector_rate, learning_rate
from tinyseed.errors import InputError
from tinyseed.methods.seed import SeedSettings


def test_cosine_after_warm_up_matches_the_closed_form():
    for progress in (0.2, 0.35, 0.6, 0.99):
        expected = 0.03 * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
        assert learning_rate(progress, 0.1, 0.03) == pytest.approx(expected, rel=1e-12)


def test_no_warm_up_begins_at_the_peak():
    assert learning_rate(0.0, 0.0, 0.5) == 0.5


def test_a_schedule_in_epochs_rises_to_its_peak_and_falls_to_nearly_nothing():
    schedule = Schedule(peak=1.0, steps_per_epoch=10, epochs=100, warmup_epochs=5, max_minutes=None)
    rates = [schedule.lr(step, 0.0) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)  # the first step of the warm-up already learns
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (49, 50)
    assert all(later <= earlier for earlier, later in pairwise(rates[50:]))
    assert rates[-1] < 1e-5


def test_automatic_warm_up_is_five_epochs_but_at_most_a_tenth():
    long = Schedule(peak=1.0, steps_per_epoch=10, epochs=200, warmup_epochs=None, max_minutes=None)
    short = Schedule(peak=1.0, steps_per_epoch=10, epochs=10, warmup_epochs=None, max_minutes=None)
    assert long.lr(24, 0.0) == pytest.approx(0.5)  # half of 5 epochs
    assert short.lr(4, 0.0) == pytest.approx(0.5)  # half of a tenth of 100 steps


def test_minutes_stretch_the_schedule_over_the_expected_steps():
    schedule = Schedule(peak=1.0, steps_per_epoch=10, epochs=200, warmup_epochs=None, max_minutes=1.0)
    assert schedule.total_steps(100, 30.0) == 200  # half the time made 100 steps
    assert schedule.total_steps(100, 60.0) == 100  # the time is over: the run ends here
    assert schedule.lr(100, 30.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.4 / 0.9)), rel=1e-6)
    assert schedule.total_steps(0, 0.0) >= 1


def test_a_cosine_may_end_above_zero():
    assert learning_rate(1.0, 0.1, 4.8, final=0.0048) == pytest.approx(0.0048)
    assert learning_rate(0.1, 0.1, 4.8, final=0.0048) == pytest.approx(4.8)
    assert learning_rate(0.55, 0.1, 4.8, final=0.0048) == pytest.approx((4.8 + 0.0048) / 2)


def test_steps_fall_where_moco_v1_does():
    schedule = Schedule(0.03, 10, 200, warmup_epochs=0, max_minutes=None, shape="step")
    rates = {epoch: schedule.lr(epoch * 10, 0.0) for epoch in (0, 119, 120, 159, 160, 199)}
    expected = {0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003}
    assert rates == pytest.approx(expected)


def test_the_plain_cosine_is_what_it_was_to_the_bit():
    """Runs that began before `--final-lr` and `--schedule` came go on as they were."""
    for step in range(0, 1000, 7):
        progress = step / 1000
        assert learning_rate(progress, 0.0, 0.03) == 0.03 * 0.5 * (1 + math.cos(math.pi * progress))


def test_detectors_warm_up_and_drop_tenfold_twice():
    rates = {step: detector_rate(step, 90_000, 0.02) for step in (499, 59_999, 60_000, 80_000)}
    assert rates == pytest.approx({499: 0.01, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002})


def test_a_detectors_rate_has_the_same_bits_as_its_formula():
    for steps in (1, 2, 3, 9, 17, 100, 18_000, 90_000):
        for step in range(0, steps, max(1, steps // 300)):
            drops = (step >= steps * 2 / 3) + (step >= steps * 8 / 9)
            warmup = max(1, min(1_000, steps // 10))
            assert detector_rate(step, steps, 0.02) == 0.02 * min(1.0, (step + 1) / warmup) * 0.1**drops


def seeds_code(epoch: int, *, lr: float, batch: int, epochs: int, warmup: int) -> float:
    """The learning rate of an epoch in the published code of SEED, and without a warm-up of MoCo."""
    scale = batch / 256
    if epoch < warmup:
        return lr + (lr * scale - lr) * epoch / warmup
    return lr * scale * (1 + math.cos(math.pi * epoch / epochs)) / 2


@pytest.mark.parametrize(("batch", "warmup"), [(256, 5), (1024, 5), (64, 5), (256, 0), (1024, 0)])
def test_the_learning_rate_by_epochs_is_that_of_seeds_and_mocos_code(batch, warmup):
    schedule = Schedule(
        0.03 * batch / 256, 7, 200, warmup, max_minutes=None, shape="cosine-epoch", start=0.03
    )
    for epoch in range(200):
        expected = seeds_code(epoch, lr=0.03, batch=batch, epochs=200, warmup=warmup)
        rates = [schedule.lr(step, 0.0) for step in (7 * epoch, 7 * epoch + 6)]
        assert rates == pytest.approx([expected] * 2, rel=1e-12)


def test_an_automatic_warm_up_by_epochs_is_at_most_a_tenth():
    schedule = Schedule(0.4, 3, 20, None, max_minutes=None, shape="cosine-epoch", start=0.1)
    assert [schedule.lr(3 * epoch, 0.0) for epoch in (0, 1)] == pytest.approx([0.1, 0.25])
    assert schedule.lr(6, 0.0) == pytest.approx(0.2 * (1 + math.cos(math.pi * 2 / 20)))


def test_a_warm_up_from_a_learning_rate_is_that_of_swavs_code():
    """A straight line with both ends, then a cosine from its first step."""
    steps, warmup, epochs, peak, final, start = 13, 10, 40, 4.8, 0.0048, 0.3
    schedule = Schedule(peak, steps, epochs, warmup, max_minutes=None, final=final, start=start)
    line = np.linspace(start, peak, warmup * steps)
    falling = np.arange(steps * (epochs - warmup)) / (steps * (epochs - warmup))
    cosine = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * falling))
    rates = [schedule.lr(step, 0.0) for step in range(steps * epochs)]
    np.testing.assert_allclose(rates, np.concatenate((line, cosine)), rtol=1e-9)


def settings_of(**given) -> SeedSettings:
    common = {"data": ("photos",), "out": Path("run"), "teacher": "resnet18", "student": "resnet18"}
    return SeedSettings(**common | given)


def test_where_a_run_begins_its_warm_up():
    assert _warmup_start(settings_of(batch_size=1024)) is None
    assert _warmup_start(settings_of(batch_size=1024, schedule="cosine-epoch")) == 0.03
    assert _warmup_start(settings_of(batch_size=1024, warmup_lr=0.01)) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup_lr": 0.1}, "warmup_lr=0.1: give a number up to `lr` 0.03"),
        ({"warmup_lr": -1.0}, "warmup_lr=-1.0: give a number from 0 to 1000000"),
        ({"schedule": "cosine-epoch", "max_minutes": 5.0}, "schedule=cosine-epoch: goes by epochs"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        settings_of(**given).check()
    assert str(caught.value).startswith(message)
