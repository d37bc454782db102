"""Command lines of any kind: exit code 0, 1 or 2, and one line of error that names what was wrong."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyseed.cli import main
from tinyseed.evaluations import EVALUATIONS
from tinyseed.memory import total_memory
from tinyseed.methods.catalog import METHODS
from tinyseed.settings.base import flag

COMMANDS = {
    **{f"{spec.command}": spec.settings for spec in METHODS},
    **{f"evaluate {spec.name}": spec.settings for spec in EVALUATIONS},
}
ODD = (
    "",
    " ",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 40,
    "0x10",
    "١",
    "½",
    "auto",
    "x\ny",
    "\x1b[31m",
    "\u202e",
)
ODD += (
    "--",
    "-",
    "--lr",
    "a=b",
    "~",
    "/dev/null",
    "no/such/path",
    "https://me:hunter2@127.0.0.1:9/a.pth",
    "a" * 9000,
    "[/b]",
)


def run(arguments, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


@st.composite
def command_lines(draw) -> list[str]:
    """A command, and some of its flags with odd values; never with data that exists, so nothing is trained."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    names = [flag(field.name) for field in dataclasses.fields(COMMANDS[command])]
    words = command.split()
    for name in draw(st.lists(st.sampled_from([*names, "--unknown", "--help-me", "-x", ""]), max_size=8)):
        value = draw(st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str)))
        words += draw(st.sampled_from(([name], [name, value], [f"{name}={value}"], [name, value, value])))
    return words


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(command_lines())
def test_any_command_line_ends_in_one_line(capsys, tmp_path_factory, arguments):
    code, _, err = run(arguments, capsys)
    assert code in (0, 1, 2)
    if code:
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert len(err) < 5000
        assert "hunter2" not in err


REQUIRED = {
    "distill": [
        "--data",
        "DATA",
        "--teacher",
        "resnet10t",
        "--teacher-weights",
        "random",
        "--student",
        "test_resnet",
    ],
    "pretrain moco-v2": ["--data", "DATA", "--backbone", "test_resnet"],
    "pretrain wide": ["--data", "DATA", "--backbone", "test_resnet", "--dim", str(2**18)],
    "pretrain swav": ["--data", "DATA", "--backbone", "test_resnet"],
    "evaluate knn": ["--model", "random:test_resnet", "--train-data", "DATA", "--test-data", "DATA"],
    "evaluate semi": ["--model", "random:test_resnet", "--train-data", "DATA", "--test-data", "DATA"],
    "evaluate linear": ["--model", "random:test_resnet", "--train-data", "DATA", "--test-data", "DATA"],
}
SMALL = ["--image-size", "32", "--batch-size", "8", "--workers", "0"]


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("distill", "--queue-size", "1" + "0" * 15),
        ("distill", "--queue-size", str(2**26)),
        ("distill", "--image-size", "1000000"),
        ("distill", "--teacher-image-size", "1000000"),
        ("distill", "--batch-size", "1000000000"),
        ("distill", "--workers", "1000000"),
        ("distill", "--epochs", "9" * 30),
        ("distill", "--projector-hidden", "1" + "0" * 12),
        ("distill", "--validation-images", "1" + "0" * 12),
        ("distill", "--log-every", "1" + "0" * 12),
        ("distill", "--devices", "1000000"),
        ("distill", "--devices", "²"),
        ("distill", "--nodes", "1" + "0" * 12),
        ("distill", "--seed", "-1"),
        ("distill", "--seed", "1" + "0" * 30),
        ("distill", "--lr", "1e300"),
        ("distill", "--channels", "1" + "0" * 9),
        ("pretrain moco-v2", "--dim", "1" + "0" * 12),
        ("pretrain wide", "--projector-hidden", str(2**18)),
        ("pretrain swav", "--prototypes", "1" + "0" * 12),
        ("pretrain swav", "--queue-size", str(2**26)),
        ("evaluate knn", "--k", "1" + "0" * 12),
        ("evaluate knn", "--image-size", "1000000"),
        ("evaluate knn", "--workers", "1000000"),
        ("evaluate semi", "--epochs", "1" + "0" * 12),
        ("evaluate linear", "--seeds", "1" + "0" * 12),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(command, name, value, photos, tmp_path, capsys):
    """`--queue-size 2**26` is in range: what it takes is compared with the machine's memory."""
    if value == str(2**26) and total_memory() >= 4 * 2**26 * 128:
        pytest.skip("fits into the memory of this machine")
    given_flags = [photos if word == "DATA" else word for word in REQUIRED[command]]
    small = SMALL if command.split()[0] != "evaluate" else []
    arguments = [
        *command.replace("wide", "moco-v2").split(),
        *given_flags,
        *small,
        "--out",
        tmp_path / "run",
        name,
        value,
    ]
    code, _, err = run(list(map(str, arguments)), capsys)
    assert code == 2
    assert err.startswith(f"tinyseed: error: {name}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_memory_that_runs_out_is_one_line(photos, tmp_path):
    """The address space of the process is limited to what the networks just do not fit into."""
    script = (
        "import resource, sys, torch, tinyseed.cli as c, tinyseed.engine.train as t;"
        "r = resource.RLIMIT_AS; resource.setrlimit(r, (6 << 30, 6 << 30));"
        "t.train = lambda settings: torch.zeros(1 << 40);"
        "c.main(sys.argv[1:])"
    )
    words = [
        "distill",
        *[photos if word == "DATA" else word for word in REQUIRED["distill"]],
        "--out",
        tmp_path / "a",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "not enough memory; give fewer --workers, or a smaller --batch-size" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_shows_escapes(encoding, tmp_path):
    name = str(Path(tmp_path / "schön→ \udcff"))
    done = subprocess.run(
        [sys.executable, "-m", "tinyseed.cli", "teachers", name],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1
