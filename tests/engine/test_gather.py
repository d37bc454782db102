"""Two real processes (gloo), each with half a batch, against one process with the whole."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("two") / "results.pt"
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *runner], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_losses_and_gradients_of_two_halves_are_those_of_the_whole(script, of_two, dtype, bound):
    expected = script.alone(dtype)
    found = of_two[str(dtype)]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.abs().max() > 1e-3, name
        torch.testing.assert_close(found[name], value, rtol=bound, atol=bound)
