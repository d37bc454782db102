"""Benchmarks that need a machine of their own run here on tiny sizes, so that they run when they are needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.mark.slow
def test_all_gpu_measurements_run(tmp_path):
    command = [sys.executable, str(BENCH / "gpu.py"), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "gpu-smoke.json").read_text())
    loops = [value for name, value in results.items() if name.startswith("loop")]
    assert loops
    assert all(found["step_ms"] > 0 and found["bare_ms"] > 0 for found in loops)
    assert not [name for name, value in results.items() if isinstance(value, str) and "skipped" in value]
    assert results["processes, images/s"]["1"] > 0
