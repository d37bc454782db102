"""Cores by a container's quota; what is set before torch is loaded, and what is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyseed import threads
from tinyseed.engine import runtime, train
from tinyseed.engine.alone import Alone
from tinyseed.methods.base import SingleProcess
from tinyseed.methods.seed import SeedSettings

OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def machine(folder: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with the control groups of a process and the files of some of them."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param(
            "0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2, id="v2, a container's own view"
        ),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2, id="a part of a core"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1, id="less than a core"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, id="no quota"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "900000 100000\n"}, 8, id="more than the cores"),
        pytest.param(
            "0::/pods/one\n",
            {
                "sys/fs/cgroup/pods/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
            },
            3,
            id="of the group above",
        ),
        pytest.param(
            "4:memory:/a\n3:cpu,cpuacct:/docker/123\n0::/\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
            id="v1, the path is the host's",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="v1, no quota",
        ),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n"}, 8, id="unreadable"),
        pytest.param("", {}, 8, id="no groups"),
    ],
)
def test_a_quota_below_the_number_of_cores_counts(tmp_path, monkeypatch, groups, files, cores):
    monkeypatch.setattr(threads, "_allowed_cores", lambda: 8)
    assert threads.usable_cores(machine(tmp_path, groups, files)) == cores


def test_without_control_groups_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_allowed_cores", lambda: 8)
    assert threads.usable_cores(tmp_path) == 8


def prepared(monkeypatch: pytest.MonkeyPatch, root: Path, **environment: str) -> dict[str, str]:
    """What a fresh process has in its environment after tinyseed was imported, of what concerns threads."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "_allowed_cores", lambda: 8)
    monkeypatch.setattr(threads, "_OURS", set())
    threads.prepare_threads(root)
    found = {name: os.environ[name] for name in OWN if name in os.environ}
    for name in OWN:  # monkeypatch knows nothing of what was set meanwhile
        monkeypatch.delenv(name, raising=False)
    return found


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    quota = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"})
    spin = str(threads.SPIN_COUNT)
    found = prepared(monkeypatch, quota)
    assert found == {"GOMP_SPINCOUNT": spin, "OMP_NUM_THREADS": "2"}
    found = prepared(monkeypatch, quota, GOMP_SPINCOUNT="7", OMP_NUM_THREADS="5")
    assert found == {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"}
    assert prepared(monkeypatch, tmp_path / "none", OMP_WAIT_POLICY="active") == {"OMP_WAIT_POLICY": "active"}


def test_without_a_quota_the_number_of_threads_is_left_to_torch(tmp_path, monkeypatch):
    assert prepared(monkeypatch, tmp_path) == {"GOMP_SPINCOUNT": str(threads.SPIN_COUNT)}


def test_nothing_changes_once_torch_is_loaded(tmp_path, monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)  # any module
    threads.prepare_threads(tmp_path)
    assert not [name for name in OWN if name in os.environ]


def test_a_number_of_ours_is_not_handed_on_as_the_users(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "_OURS", set())
    assert not threads.number_is_ours()
    assert os.environ["OMP_NUM_THREADS"] == "4"
    monkeypatch.setattr(threads, "_OURS", {"OMP_NUM_THREADS"})
    assert threads.number_is_ours()
    assert "OMP_NUM_THREADS" not in os.environ


def test_openmp_reads_it():
    """It is there before libgomp is, whoever imports torch first through tinyseed."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", "import tinyseed; tinyseed.Queue"],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch does not use libgomp")
    assert f"GOMP_SPINCOUNT = '{threads.SPIN_COUNT}'" in done.stderr


@pytest.mark.parametrize(("busy", "own", "others"), [(0.0, 2.0, 0.0), (3.0, 2.0, 1.5), (6.0, 1.0, 3.0)])
def test_what_other_programs_compute_is_seen(tmp_path, monkeypatch, busy, own, others):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 4, 7}, raising=False)
    ticks = os.sysconf("SC_CLK_TCK")

    def moment(at: float, computed: float, idle: float) -> threads.Moment:
        lines = ["cpu 1 2 3 99999 5 6", "cpu0 0 0 0 77777 0 0", "intr 1 2 3 4 5 6"]
        for core in (1, 3, 4, 7):
            lines.append(f"cpu{core} 50 0 9 {round(idle * ticks / 4) - 3} 3 8 0 0 0 0")
        machine(tmp_path, "", {"proc/stat": "\n".join(lines) + "\n"})
        monkeypatch.setattr(threads.time, "monotonic", lambda: at)
        monkeypatch.setattr(threads.time, "process_time", lambda: computed)
        return threads.Moment.now(tmp_path)

    before = moment(100.0, 5.0, 1000.0)
    after = moment(102.0, 5.0 + own, 1000.0 + 8.0 - own - busy)  # two seconds of four cores
    assert after.busy_since(before) == pytest.approx(others, abs=0.05)
    assert after.busy_since(after) == 0  # too short to tell


def test_where_the_system_does_not_say_nobody_is_busy(tmp_path):
    first, second = (threads.Moment.now(tmp_path / "none") for _ in range(2))
    assert first.idle is None
    assert threads.Moment(first.at + 9, 0, None).busy_since(first) == 0
    assert second.busy_since(threads.Moment(0, 0, 5.0)) == 0


@pytest.mark.parametrize(
    ("wanted", "before", "busy", "given", "number"),
    [
        ("auto", None, 0.2, False, 3),
        ("auto", None, 1.1, False, 2),
        ("auto", None, 9.0, False, 1),
        ("auto", None, 1.1, True, 3),  # the user has said how many
        ("auto", 5, 1.1, False, 5),  # a resumed run keeps its number
        (4, 5, 1.1, True, 4),
    ],
)
def test_a_run_has_fewer_threads_beside_others(monkeypatch, wanted, before, busy, given, number):
    now = torch.get_num_threads()
    monkeypatch.setattr(threads.Moment, "busy_since", lambda *_: busy)
    monkeypatch.setattr(runtime, "number_is_given", lambda: given)
    alone = runtime.Runtime(Alone(None), Alone(None), "32", SingleProcess())
    torch.set_num_threads(3)
    try:
        with runtime.computing_threads(wanted, before, alone) as note:
            assert torch.get_num_threads() == number
            assert bool(note) == (wanted == "auto" and before is None and number < 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(now)


def test_a_resumed_run_keeps_its_number(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))  # others compute with another number
    small = {"batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "epochs": 1, "queue_size": 8}
    networks = {"teacher": "test_resnet", "teacher_weights": "random", "student": "test_resnet"}
    settings = SeedSettings(data=(str(photos),), out=tmp_path / "run", threads=2, **small, **networks)
    seen, real = [], train.train_step
    monkeypatch.setattr(
        train, "train_step", lambda *given: (seen.append(torch.get_num_threads()), real(*given))[1]
    )
    train.train(settings, quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == 2
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(runtime, "threads_beside_others", lambda *_: 1)
    train.train(settings.replaced(resume=True, threads="auto"), quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == 2
    assert set(seen) == {2}
