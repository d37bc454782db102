import subprocess
import sys
import textwrap

import pytest
import torch

from tinyseed.engine import checkpoint
from tinyseed.engine.checkpoint import Checkpoint
from tinyseed.errors import InputError, RunError


def content(step: int, size: int = 10) -> Checkpoint:
    return Checkpoint(
        step=step,
        elapsed=1.5,
        images=7,
        module={"w": torch.full((size,), float(step))},
        method={},
        optimizer={},
        precision={},
    )


def test_what_is_saved_is_restored(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.save(content(3), path)
    restored = checkpoint.load(path)
    assert (restored.step, restored.elapsed, restored.images) == (3, 1.5, 7)
    assert torch.equal(restored.module["w"], torch.full((10,), 3.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_that_fails_half_way_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoint.save(content(1), path)

    def fails_half_way(_, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(RunError, match=r"No space left on device; the last checkpoint is intact"):
        checkpoint.save(content(2), path)
    monkeypatch.undo()
    assert checkpoint.load(path).step == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_really_full_disk_leaves_the_last_checkpoint(tmp_path):
    """The operating system itself refuses the write: files are limited to 100 kB in the child process."""
    script = f"""
        import resource, signal, torch
        from pathlib import Path
        from tinyseed.engine import checkpoint
        from tinyseed.engine.checkpoint import Checkpoint
        from tinyseed.errors import RunError
        def content(step, size):
            parts = dict(module={{"w": torch.zeros(size)}}, method={{}}, optimizer={{}}, precision={{}})
            return Checkpoint(step=step, elapsed=0.0, images=1, **parts)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        path = Path({str(tmp_path / "last.ckpt")!r})
        checkpoint.save(content(1, 10), path)
        try:
            checkpoint.save(content(2, 1_000_000), path)
        except RunError as error:
            print(error)
        print(checkpoint.load(path).step, [file.name for file in path.parent.iterdir()])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told, kept = done.stdout.strip().splitlines()
    assert told.startswith("could not save")
    assert "the last checkpoint is intact" in told
    assert kept == "1 ['last.ckpt']"


def test_a_broken_file_and_another_format_are_refused_in_one_line(tmp_path):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(InputError, match="cannot be read as a checkpoint") as caught:
        checkpoint.load(broken)
    assert "\n" not in str(caught.value)
    torch.save({"format": 99}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="format 1"):
        checkpoint.load(tmp_path / "other.ckpt")
