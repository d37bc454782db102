"""Two real processes (gloo), each with half a batch, against one process with the whole."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import Precision

from tinyseed.engine.runtime import ProcessGroup, Runtime, share_statistics
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector

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


def test_shared_statistics_change_neither_names_nor_outputs(monkeypatch):
    """MobileNet's batch norms hold their activation, which torch's own conversion would drop."""
    group = ProcessGroup(0, 2)
    runtime = Runtime(Fabric(accelerator="cpu", devices=1), Precision(), "32", group)
    encoder = Encoder(
        build_backbone("mobilenetv3_small_050", seed=0), build_projector("mlp-bn", 1024, 8, 16, seed=0)
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, names = encoder.eval()(images), list(encoder.state_dict())
    assert share_statistics(encoder, runtime) is encoder
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in encoder.modules())
    monkeypatch.setattr(Runtime, "device", property(lambda _: torch.device("cuda")))
    share_statistics(encoder, runtime)
    assert not any(
        isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) for module in encoder.modules()
    )
    assert list(encoder.state_dict()) == names
    assert torch.equal(encoder.eval()(images), before)
