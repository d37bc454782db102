"""A short form of the soak test; `make soak` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_killed_at_random_instants_and_run_again_equals_unbroken():
    script = Path(__file__).with_name("soak.py")
    command = [sys.executable, str(script), "--kills", "4", "distill-2", "knn"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()[1:]]
    counted = {name: (int(kills), int(stops), int(equal)) for name, kills, stops, _, equal, _ in rows}
    assert counted == {"distill-2": (3, 1, 4), "knn": (3, 1, 4)}
