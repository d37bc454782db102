"""Signals in every phase, closed streams, python -OO."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinyseed import cli
from tinyseed.data.sources import open_source
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.train import train
from tinyseed.methods.seed import SeedSettings
from tinyseed.signals import STOPPING, Stopped, StopRequest, stop_request


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


def test_what_a_launcher_passes_on_counts_once(monkeypatch):
    now = 100.0
    monkeypatch.setattr("tinyseed.signals.time.monotonic", lambda: now)
    request = StopRequest()
    request(signal.SIGINT, None)
    request(signal.SIGINT, None)  # torchrun's, beside the terminal's
    now = 102.0
    request(signal.SIGTERM, None)
    assert request.number == signal.SIGINT
    now = 104.0
    with pytest.raises(KeyboardInterrupt):
        request(signal.SIGINT, None)


@pytest.mark.parametrize("number", STOPPING)
def test_an_impatient_request_interrupts(number):
    before = [signal.getsignal(each) for each in STOPPING]
    with stop_request() as request:
        os.kill(os.getpid(), number)
        assert request.number == number
        with pytest.raises(Stopped) as stopped:
            asleep(request)
    assert stopped.value.exit_code == 128 + number
    with stop_request() as request, pytest.raises(Stopped):
        asleep(request, number)
    assert [signal.getsignal(each) for each in STOPPING] == before


def asleep(request, number=None):
    with request.at_once():
        if number is not None:
            os.kill(os.getpid(), number)
        time.sleep(5)
        pytest.fail("it was not interrupted")


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def settings(photos, out, **changes):
    small = {"batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1, "epochs": 2}
    networks = {"teacher": "test_resnet", "teacher_weights": "random", "student": "test_resnet"}
    small["evaluate_every"] = 1
    return SeedSettings(data=(str(photos),), out=out, **networks, **small | changes)


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(settings(photos, out, threads=1), quiet=True)  # as the tests, which have one
    return out


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait")}
        for line in lines
    ]


@pytest.mark.parametrize("evaluation", [0, 1, 2], ids=["before the first step", "between epochs", "last"])
def test_a_signal_during_an_evaluation_saves_and_stops_at_once(
    photos, tmp_path, unbroken, monkeypatch, evaluation
):
    measure, calls = Monitor.measure, []

    def interrupted(self, method, *rest, **how):
        calls.append(method)
        if len(calls) == evaluation + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return measure(self, method, *rest, **how)

    monkeypatch.setattr(Monitor, "measure", interrupted)
    out, began = tmp_path / "run", time.monotonic()
    with pytest.raises(Stopped, match="saved; resume") as stopped:
        train(settings(photos, out), quiet=True)
    assert stopped.value.exit_code == 143
    assert time.monotonic() - began < 50
    monkeypatch.undo()
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    train(settings(photos, out, resume=True), quiet=True)
    assert metrics(out) == metrics(unbroken)
    resumed, expected = (load_file(each / "student.safetensors") for each in (out, unbroken))
    assert all(np.array_equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_while_data_is_opened_ends_at_once(photos, tmp_path, monkeypatch, capfd, number):
    def opening(*_):
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("tinyseed.evaluation.splits.open_source", opening)
    monkeypatch.setattr("tinyseed.engine.data.open_source", opening)
    evaluate = ("evaluate", "knn", "--model", "random:test_resnet", "--train-data", str(photos))
    run = ("distill", "--data", str(photos), "--teacher", "test_resnet", "--student", "test_resnet")
    for arguments in ((*evaluate, "--test-data", str(photos)), (*run, "--out", str(tmp_path / "run"))):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 128 + number
        assert capfd.readouterr().err.count("\n") == 1
    assert open_source([str(photos)])


def tinyseed(*arguments, **environment):
    command = [sys.executable, "-m", "tinyseed", *arguments]
    return subprocess.run(
        command, capture_output=True, env=os.environ | environment, timeout=100, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipes",),
        ("recipes", "seed-imagenet"),
        ("pretrain", "swav", "--help"),
        ("evaluate", "detect", "--help"),
    ],
)
def test_help_does_not_depend_on_docstrings_in_memory(arguments):
    bare = tinyseed(*arguments, PYTHONOPTIMIZE="2", PYTHONDONTWRITEBYTECODE="1")
    assert bare.returncode == 0
    assert len(bare.stdout) > 500
    assert bare == tinyseed(*arguments) or bare.stdout == tinyseed(*arguments).stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| head -1"])
def test_closed_streams_are_no_error(closed):
    command = f'"{sys.executable}" -m tinyseed recipes {closed}; echo "${{PIPESTATUS[0]}}" >&3'
    reader, writer = os.pipe()
    ended = subprocess.run(
        ["bash", "-c", f"exec 3>&{writer}; {command}"],
        pass_fds=[writer],
        capture_output=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read().strip() in ("0", "141")
    assert ended.stderr == b""


def test_names_that_the_terminal_cannot_write(photos, tmp_path):
    named = tmp_path / "bäume-\u2192"
    named.symlink_to(photos)
    ended = tinyseed("evaluate", "knn", "--model", str(named), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ended.returncode == 2
    assert ended.stderr.count(b"\n") == 1
    assert b"Traceback" not in ended.stderr
