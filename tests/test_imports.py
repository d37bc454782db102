"""What is imported when: nobody waits for modules that are not used."""

import subprocess
import sys

import pytest
from PIL import Image

NEVER = (
    "lightning_fabric",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "scipy",
    "sklearn",
    "transformers",
    "onnx",
)
"""Modules that one process on the CPU needs at no time; together they take longer than all that it needs."""

FIRST_STEP = """
import sys
from pathlib import Path
from tinyseed.engine import train
from tinyseed.methods.seed import SeedSettings

step = train.train_step

def end_after(*given):
    step(*given)
    print(" ".join(sys.modules))
    sys.stdout.flush()
    raise KeyboardInterrupt

train.train_step = end_after
try:
    train.train(SeedSettings(data=(sys.argv[1],), out=Path(sys.argv[2]), teacher="random:resnet10t",
        student="resnet10t", image_size=32, batch_size=8, queue_size=16, epochs=1), quiet=True)
except KeyboardInterrupt:
    pass
"""


def loaded_after(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("what", ["import tinyseed", "from tinyseed.cli import run; run(['--help'])"])
def test_the_package_and_its_help_need_no_library(what):
    loaded = loaded_after(f"import sys; {what}; print(' '.join(sys.modules))")
    assert "tinyseed" in loaded
    heavy = (*NEVER, "torch", "timm", "torchvision", "pyarrow", "rich", "PIL")
    assert not loaded & set(heavy)


def test_the_first_step_on_a_cpu_has_imported_nothing_that_it_does_not_use(tmp_path):
    for number in range(24):
        Image.new("RGB", (32, 32), (10 * number, 60, 90)).save(tmp_path / f"{number}.png")
    loaded = loaded_after(FIRST_STEP, tmp_path, tmp_path / "run")
    assert {"torch", "timm"} <= loaded
    assert not loaded & set(NEVER)
