"""Cores by a container's quota; what is set before torch is loaded, and what is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyseed import threads

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
