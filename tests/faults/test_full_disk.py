"""Each writer on a disk that is really full: one line that says so, the former file intact, nothing left beside it.

A small tmpfs in a mount namespace of its own, so that nothing else sees it.
"""

import os
import subprocess
import sys
import textwrap

import pytest

PREPARED = """
import os, sys
from pathlib import Path
disk, photos = Path(sys.argv[1]), Path(sys.argv[2])
os.environ["TINYSEED_CACHE"] = sys.argv[3]
import numpy as np
import torch
from tinyseed.errors import InputError, RunError

def fill():
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"x")

def listing():
    return {path: path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.name != "filler"}

def refused(write):
    before = listing()
    try:
        write()
    except RunError as error:
        assert "No space left on device" in str(error), error
        assert len(str(error).splitlines()) == 1
        assert str(disk) in str(error)
        assert "unfinished" not in str(error), error
    else:
        raise AssertionError("nothing was said")
    now = listing()
    assert now == before, sorted(map(str, now))
"""


@pytest.fixture
def on_full_disk(tmp_path, photos):
    """Run a script with a tmpfs of 16 MB at `disk`, or skip."""

    def run(script: str, *, cache_on_disk: bool = False, options: str = "size=16m,nr_inodes=400") -> str:
        disk = tmp_path / "disk"
        disk.mkdir(exist_ok=True)
        mount = f'mount -t tmpfs -o {options} none "$1" && shift && exec "$@"'
        own = ["unshare", "-rm", "sh", "-c", mount, "sh", str(disk)]
        try:
            subprocess.run([*own, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs `unshare -rm` and a tmpfs, which this machine does not allow")
        cache = disk / "cache" if cache_on_disk else tmp_path / "cache"
        code = PREPARED.replace("import os, sys", "import os, sys\nfrom contextlib import suppress", 1)
        code += textwrap.dedent(script)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*own, sys.executable, "-c", code, str(disk), str(photos), str(cache)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_every_writer_says_so_and_leaves_the_former_file(on_full_disk):
    on_full_disk("""
    from tinyseed import files
    from tinyseed.checkpoints.load import load_model
    from tinyseed.checkpoints.saved import save_encoder
    from tinyseed.data.cache import write_arrays
    from tinyseed.data.loader import BadRecord
    from tinyseed.detection.export import export_detectron2
    from tinyseed.engine import checkpoint
    from tinyseed.engine.run_folder import Quarantine, RunFolder
    from tinyseed.locks import locked
    from tinyseed.models.spec import ModelSpec
    from tinyseed.picture import Query, draw_neighbors
    from tinyseed.report.page import write_report
    from PIL import Image

    run = RunFolder(disk / "run")
    small = torch.zeros(10)

    def save(step, size):
        tensors = {"w": torch.rand(size)}
        content = checkpoint.Checkpoint(step, 0.0, 1, tensors, {}, {}, {})
        checkpoint.save(content, run.checkpoint)

    quarantine = Quarantine(run, 10**6)
    def bad(index):
        quarantine.add([BadRecord(index, f"image {index}", "x" * 5000)])
    query = Query(Image.effect_noise((64, 64), 99).convert("RGB"), "a class", [[]])
    encoder = load_model(ModelSpec("random:resnet18"))
    files.write_text(run.metrics, ""); files.write_text(run.quarantine, ""); quarantine.begin()
    writers = {
        "text": lambda n: files.write_text(run.config, "x" * 5000 * n),
        "json": lambda n: files.write_json(run.lineage, {"x": "x" * 5000 * n}),
        "metrics": lambda n: run.log({"step": n, "x": "x" * 5000 * n}),
        "metrics replaced": lambda n: run.forget_after(9),
        "quarantine": bad,
        "checkpoint": lambda n: save(n, 5000 * n),
        "arrays of the cache": lambda n: write_arrays(disk / "a", {"x": np.zeros(9000 * n, np.uint8)}, {}),
        "report": lambda n: write_report(run.path),
        "picture": lambda n: draw_neighbors(disk / "picture.png", ["m"], [query] * 9, "caption"),
    }
    for write in writers.values():
        write(1)
    fill()
    for name, write in writers.items():
        print(name)
        refused(lambda: write(2))
    refused(lambda: save_encoder(disk / "run", encoder))
    refused(lambda: export_detectron2(encoder, disk / "resnet.pkl"))
    os.truncate(disk / "filler", 0)
    for write in writers.values():
        write(3)
    assert checkpoint.load(run.checkpoint).step == 3
    """)


def test_no_file_can_be_made_either(on_full_disk):
    """Inodes run out before bytes on some file systems; a folder cannot be made, nor a lock."""
    on_full_disk(
        """
    from tinyseed import files
    from tinyseed.locks import locked

    files.write_text(disk / "a", "old")
    with suppress(OSError):
        for number in range(1000):
            (disk / f"f{number}").touch()
    refused(lambda: files.write_text(disk / "a", "new"))
    refused(lambda: files.write_text(disk / "folder/b", "new"))
    def lock():
        with locked(disk / "run"):
            pass
    refused(lock)
    """,
        options="size=6m,nr_inodes=40",
    )


SMALL = """
    import tinyseed
    given = dict(data=photos, teacher="resnet10t", teacher_weights="random", student="test_resnet", epochs=2,
                 batch_size=12, image_size=32, workers=0, precision="32", log_every=1)
"""


@pytest.mark.slow
def test_training_on_a_disk_that_fills_up_ends_in_one_line_and_resumes(on_full_disk):
    """The disk is full at three times: before the folder, at a checkpoint, and at the last files."""
    on_full_disk(
        SMALL
        + """
    from tinyseed.engine import run as engine
    out = disk / "run"
    (disk / "filler").touch()
    fill()
    refused(lambda: tinyseed.distill(**given, out=out))
    assert not out.exists()
    for moment in ("save", "finish"):
        os.truncate(disk / "filler", 0)
        real = getattr(engine.Run, moment)
        def full(self, *given):
            fill()
            return real(self, *given)
        setattr(engine.Run, moment, full)
        try:
            tinyseed.distill(**given, out=out, resume=(out / "config.json").exists())
        except RunError as error:
            assert "No space left on device" in str(error), error
        else:
            raise AssertionError(moment)
        setattr(engine.Run, moment, real)
        assert not (out / "summary.json").exists()
    os.truncate(disk / "filler", 0)
    tinyseed.distill(**given, out=out, resume=True)
    assert (out / "report.html").exists()
    """
    )


@pytest.mark.slow
def test_a_full_cache_ends_no_run_and_no_evaluation(on_full_disk):
    told = on_full_disk(
        SMALL
        + """
    (disk / "cache").mkdir()
    fill()
    out = Path(sys.argv[1]).parent / "run"
    tinyseed.distill(**given, out=out)
    for workers in (0, 1):
        tinyseed.evaluate("knn", model=out, train_data=photos, test_data=photos, k=[3], workers=workers)
    small = dict(train_data=photos, test_data=photos, workers=0)
    tinyseed.evaluate("linear", model=out, protocol="moco", epochs=2, batch_size=12, **small)
    assert (out / "evaluate-linear.json").exists()
    assert not [path for path in (disk / "cache").rglob("*") if path.is_file()]
    """,
        cache_on_disk=True,
    )
    assert told.count("the images are listed again next time") == 1


@pytest.mark.slow
def test_the_command_line_ends_with_exit_code_1(on_full_disk):
    told = on_full_disk("""
    from tinyseed import cli
    fill()
    arguments = ["knn", "--model", "random:resnet10t", "--train-data", str(photos), "--test-data", str(photos)]
    try:
        cli.main(["evaluate", *arguments, "--k", "3", "--image-size", "32", "--out", str(disk)])
    except SystemExit as end:
        assert end.code == 1, end.code
    """)
    assert "No space left on device" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_read_only_folder_is_refused_before_anything_is_computed(on_full_disk):
    on_full_disk(
        SMALL
        + """
    before = os.listdir(disk)
    for call in (
        lambda: tinyseed.distill(**given, out=disk / "run"),
        lambda: tinyseed.evaluate("knn", model="random:resnet10t", train_data=photos, test_data=photos, out=disk),
    ):
        try:
            call()
        except InputError as error:
            assert error.argument == "out", error
        else:
            raise AssertionError("nothing was said")
    """,
        options="ro",
    )
