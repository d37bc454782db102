"""One process on the CPU against Lightning Fabric: the same outputs and gradients to the last bit."""

import pytest
import torch
from lightning_fabric import Fabric as Lightning
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.precision import Precision
from torch import nn
from torch.optim import SGD

from tinyseed.engine.alone import Alone
from tinyseed.engine.runtime import Fabric, Stateful


class TwoOutputs(nn.Module):
    """As SwAV's module: several views in, a tuple out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        )

    def forward(self, *views):
        rows = torch.cat([self.layers(view) for view in views])
        return nn.functional.normalize(rows, dim=1), rows.argmax(1)


def trained(fabric):
    module = TwoOutputs()
    forward, optimizer = fabric.setup(module, SGD(module.parameters(), lr=0.1, momentum=0.9))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        rows, places = forward(*(torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)))
        assert (rows.dtype, places.dtype) == (torch.float32, torch.int64)
        with fabric.autocast():
            loss = (rows @ rows.T).square().mean()
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, module.state_dict()


@pytest.mark.parametrize(
    ("alone", "plugin"),
    [(Alone(), Precision()), (Alone(torch.bfloat16), MixedPrecision("bf16-mixed", "cpu"))],
    ids=["float32", "bf16"],
)
def test_it_computes_what_fabric_computes(alone, plugin):
    lightning = Lightning(accelerator="cpu", devices=1, plugins=[plugin])
    assert isinstance(alone, Fabric)
    assert isinstance(lightning, Fabric)
    assert isinstance(alone, Stateful)
    assert alone.state_dict() == plugin.state_dict() == {}
    (losses, state), (wanted, expected) = trained(alone), trained(lightning)
    assert losses == wanted
    assert len(set(losses)) == 3
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
