"""Refactoring moves no number: losses, weights and metrics of 20 seeded steps and of all evaluations, to the bit.

The recorded values hold for the versions and the kind of processor that they were recorded with; elsewhere rounding
differs in the last digits, and the test is skipped. After a change that is meant to move numbers, record them again:

    python tests/regression/test_regression.py
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.json"


def measure(threads: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py"), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "TINYSEED_CACHE"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def versions(names: list[str]) -> dict[str, str]:
    return {name: version(name) for name in names}


def processor() -> dict[str, Any]:
    import torch

    known = torch.cpu.get_capabilities()
    kinds = ("amx_bf16", "avx512_bf16", "l2_cache_size")
    found = {name: known.get(name) for name in kinds}
    found |= {"name": known.get("cpu_name"), "cores": known.get("num_physical_cores")}
    return found | {"capability": torch.backends.cpu.get_cpu_capability()}


def differences(found: object, expected: object, place: str = "") -> list[str]:
    """Where two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for name in sorted(found.keys() | expected.keys())
            for line in differences(found.get(name), expected.get(name), f"{place}/{name}")
        ]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for at, pair in pairs for line in differences(*pair, f"{place}/{at}")]
    return [] if found == expected else [f"{place}: {found!r} instead of {expected!r}"]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_is_the_recorded_one(threads):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    installed = versions(list(recorded["versions"]))
    if installed != recorded["versions"]:
        pytest.skip(f"recorded with other versions: {recorded['versions']}")
    if processor() != recorded["processor"]:
        pytest.skip(f"recorded on another processor: {recorded['processor']}; this one is {processor()}")
    changed = differences(measure(threads), recorded["threads"][str(threads)])
    assert not changed, f"{len(changed)} numbers changed, the first: {changed[:5]}"


def test_differences_are_found():
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": 1}) == [
        "/a/1/b: 2 instead of 3",
        "/c: None instead of 1",
    ]


if __name__ == "__main__":
    names = ["lightning-fabric", "numpy", "pillow", "pycocotools", "timm", "torch", "torchvision"]
    content = {"versions": versions(names), "processor": processor()}
    content["threads"] = {str(threads): measure(threads) for threads in (1, 2)}
    RECORDED.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
