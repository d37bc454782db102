"""The benchmarks' controller: sides that wait are stopped, and stops do not count."""

import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP")

LOOP = """
import sys, time
sys.path.insert(0, {bench!r})
from turns import Stamper
stamper = Stamper()
for step in range({steps}):
    time.sleep(0.02)
    stamper.step()
    if {away}:
        with stamper.away():
            time.sleep(0.1)
"""


@pytest.fixture
def turns():
    import turns

    return turns


def side(turns, folder: Path, name: str, *, steps: int = 12, runs: int = 12, away: bool = False):
    code = LOOP.format(bench=str(BENCH), steps=runs, away=away)
    return turns.Side(
        name, [sys.executable, "-c", code], folder / f"{name}.log", batch=1, total=steps, patience=20
    )


def test_stops_and_the_benchmarks_own_work_do_not_count(turns, tmp_path):
    plain, saving = side(turns, tmp_path, "plain"), side(turns, tmp_path, "saving", away=True)
    with turns.ended_at_exit([plain, saving]):
        began = time.monotonic()
        turns.take_turns([plain, saving], 4)
        whole = time.monotonic() - began
    assert plain.steps == saving.steps == 12
    for each in (plain, saving):
        times = each.times()
        assert times == sorted(times)
        spent = times[-1] - times[0]
        # The other side ran, or it saved, in the rest. A sleep goes on during a stop: two of the steps may be short.
        assert 9 * 0.02 <= spent < 0.6 * whole
    assert len(plain.turns) == 2
    assert all(0.01 < seconds < 0.5 for seconds in plain.turns)


def test_a_side_that_ends_too_early_says_so_with_its_log(turns, tmp_path):
    short = side(turns, tmp_path, "short", runs=2)
    with turns.ended_at_exit([short]), pytest.raises(RuntimeError, match="short ended at step 2"):
        short.turn(5)


def test_no_process_is_left_behind(turns, tmp_path):
    waiting = side(turns, tmp_path, "waiting", steps=500, runs=500)
    with turns.ended_at_exit([waiting]):
        waiting.turn(2)
        process = waiting._process
        assert process.poll() is None
    assert process.poll() == -9
