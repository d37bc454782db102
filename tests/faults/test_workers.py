"""Workers that die, fail or are signaled; machines without shared memory, open files or memory."""

import errno
import faulthandler
import multiprocessing
import multiprocessing.synchronize
import os
import resource
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import tinyseed
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.loader import (
    Plan,
    TrainingViews,
    _EvaluationViews,
    evaluation_batches,
    training_batches,
)
from tinyseed.data.workers import in_processes, in_worker
from tinyseed.errors import InputError, RunError
from tinyseed.signals import STOPPING


def gone(process: int, seconds: float = 5.0) -> bool:
    for _ in range(int(seconds * 50)):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":  # ended, and its parent, which is not ours, has not looked yet
            return True
        time.sleep(0.02)
    return False


def contents(number):
    generator = np.random.default_rng(number)
    tensor = torch.from_numpy(generator.normal(size=(number % 3, 4)).astype(np.float32))
    return number, {"tensor": tensor, "turned": tensor.T, "array": generator.bytes(5)}, np.arange(number)


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 7])
def test_results_come_in_order_and_unchanged(workers):
    found = list(in_processes(contents, range(5), workers))
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4]
    for (_, named, array), (_, expected_named, expected_array) in zip(
        found, map(contents, range(5)), strict=True
    ):
        assert torch.equal(named["tensor"], expected_named["tensor"])
        assert torch.equal(named["turned"], expected_named["turned"])
        assert named["array"] == expected_named["array"]
        assert np.array_equal(array, expected_array)
        named["tensor"] += 1  # memory of its own, that may be written to


def test_no_requests_and_large_results():
    assert list(in_processes(contents, [], 2)) == []
    large = list(
        in_processes(lambda number: torch.full((9_000_001,), number, dtype=torch.uint8), range(3), 2)
    )
    assert [int(tensor.sum()) for tensor in large] == [0, 9_000_001, 18_000_002]


def killed(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def crashed(number):
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), signal.SIGSEGV)


def left(number):
    os._exit(3)


def exited(number):
    raise SystemExit(5)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (killed, "was ended by SIGKILL; memory is probably full: give fewer `workers`"),
        (crashed, "was ended by SIGSEGV; 0 `workers` shows more"),
        (left, "ended with exit code 3; 0 `workers` shows more"),
        (exited, "ended with exit code 5"),
    ],
)
def test_a_dead_worker_is_reported_soon(work, message):
    began = time.monotonic()
    with pytest.raises(RunError, match=message):
        list(in_processes(work, iter(range(1_000_000)), 2))
    assert time.monotonic() - began < 10


class UnpicklableError(Exception):
    def __init__(self, number, other):
        super().__init__(f"{number} {other}")


def raised(error):
    def work(number):
        raise error

    return work


@pytest.mark.parametrize(
    "error", [ValueError("a fault"), InputError("x", "why", argument="data"), RunError("r"), MemoryError("m")]
)
def test_a_workers_error_is_raised_here(error):
    with pytest.raises(type(error)) as caught:
        list(in_processes(raised(error), range(4), 2))
    assert str(caught.value) == str(error)
    assert "in a worker process" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_keeps_its_message():
    with pytest.raises(RuntimeError, match="UnpicklableError: 1 2"):
        list(in_processes(raised(UnpicklableError(1, 2)), range(4), 1))


def signaled(number):
    for each in STOPPING:
        os.kill(os.getpid(), each)
    return in_worker()


def test_workers_leave_signals_to_the_main_process():
    assert list(in_processes(signaled, range(4), 2)) == [True] * 4
    assert not in_worker()


def pid(number):
    return os.getpid()


@pytest.mark.parametrize("received", [0, 1, 3])
def test_workers_end_when_nobody_asks_any_more(received):
    before = set(multiprocessing.active_children())
    with closing(in_processes(pid, iter(range(10**9)), 2)) as results:
        found = [next(results) for _ in range(received)]
        children = [child.pid for child in set(multiprocessing.active_children()) - before]
        assert len(children) == (2 if received else 0)
        assert set(found) <= set(children)
    assert all(gone(child) for child in children)


def test_workers_end_with_a_killed_parent():
    reader, writer = multiprocessing.Pipe(duplex=False)
    parent = os.fork()
    if parent == 0:
        results = in_processes(pid, iter(range(10**9)), 2)
        writer.send([next(results), next(results)])
        signal.pause()
    workers = reader.recv()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert len(set(workers)) == 2
    assert all(gone(worker) for worker in workers)


def test_neither_semaphores_nor_shared_memory_are_needed(monkeypatch):
    """Both lie in /dev/shm, which containers may lack or mount with 64 MB."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "share_memory_", refuse)
    before = set(Path("/dev/shm").iterdir())
    assert len(list(in_processes(contents, range(20), 2))) == 20
    assert set(Path("/dev/shm").iterdir()) <= before


def with_files_below(limit, call):
    """What a call returns or raises where no file may get this number or a higher one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_open_files_are_needed():
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert len(with_files_below(highest + 11, lambda: list(in_processes(contents, range(9), 2)))) == 9


def test_too_few_open_files_are_called_that():
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with pytest.raises(RunError, match=r"2 decoding processes cannot be started .*: .*ulimit -n"):
        with_files_below(free + 3, lambda: list(in_processes(contents, range(9), 2)))


class Failing:
    """A source of which one image raises an error when it is read."""

    labels = None
    classes = ()
    fingerprint = "0"

    def __init__(self, image: bytes, error: Exception):
        self.image, self.error = image, error

    def __len__(self):
        return 8

    def read(self, index):
        if index == 5:
            raise self.error
        return self.image

    def name(self, index):
        return f"image {index}"


MACHINE = [
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (OSError(errno.ENFILE, "Too many open files in system"), "fs.file-max"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory; give fewer `workers`"),
    (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "look at its mount"),
    (MemoryError(), "not enough memory; give fewer `workers`"),
]


def batches(source, workers):
    views = TrainingViews(source, (View(ViewSettings(), 16),), 0, np.arange(8))
    plan = Plan(np.arange(8), 8, 0)
    yield evaluation_batches(source, np.arange(8), size=16, workers=workers)
    yield training_batches(views, plan, first_step=0, workers=workers, pin_memory=False)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("error", "remedy"), MACHINE)
def test_what_the_machine_lacks_is_no_fault_of_an_image(photos, workers, error, remedy):
    image = next(photos.glob("*/*.jpg")).read_bytes()
    for loaded in batches(Failing(image, error), workers):
        with closing(loaded), pytest.raises(RunError, match=f"image 5 could not be read .*{remedy}"):
            next(loaded)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_what_is_a_fault_of_an_image_is_put_into_quarantine(photos, number):
    image = next(photos.glob("*/*.jpg")).read_bytes()
    for loaded in batches(Failing(image, OSError(number, os.strerror(number))), 0):
        with closing(loaded):
            assert [record.index for record in next(loaded).bad] == [5]


def test_a_lack_of_memory_while_decoding_is_no_damage(photos, monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    image = next(photos.glob("*/*.jpg")).read_bytes()
    for loaded in batches(Failing(image, MemoryError()), 0):
        with closing(loaded), pytest.raises(RunError, match="not enough memory"):
            next(loaded)


def deadly(self, indices):
    if in_worker():
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("evaluation", ["knn", "linear", "semi", "transfer"])
def test_a_worker_that_dies_in_an_evaluation_is_not_taken_for_unreadable_images(
    photos, tmp_path, monkeypatch, evaluation
):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path))
    monkeypatch.setattr(_EvaluationViews, "batch", deadly)
    data = {"train_data": photos, "test_data": photos, "image_size": 32, "workers": 1}
    short = {"semi": {"fraction": (1.0,), "epochs": 1}, "transfer": {"epochs": 1}}.get(evaluation, {})
    with pytest.raises(RunError, match="a decoding process was ended by SIGKILL"):
        tinyseed.evaluate(evaluation, model="random:test_resnet", **data, **short)
