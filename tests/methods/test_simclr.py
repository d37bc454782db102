from pathlib import Path

import pytest
import torch

from tinyseed.methods.base import Method
from tinyseed.methods.simclr import SimCLR, SimCLRSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.contrast import nt_xent

REQUIRED = {"data": (), "out": Path(), "backbone": "resnet10t"}


def build(**settings) -> SimCLR:
    backbone = build_backbone("resnet10t", seed=0)
    config = SimCLRSettings(**REQUIRED, dim=16, **settings)
    return SimCLR(
        config, Encoder(backbone, build_projector(config.projector, backbone.width, 16, 32, seed=1))
    )


@pytest.mark.parametrize("projector", ["mlp-bn", "mlp-bn-3"])
def test_a_step_passes_both_views_at_once_and_is_nt_xent(projector):
    method = build(projector=projector, temperature=0.5)
    assert isinstance(method, Method)
    views = (torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))
    passes: list[torch.Tensor] = []

    def forward(images):
        passes.append(method.module(images))
        return passes[-1]

    output = method.step(forward, views, 0)
    (rows,) = passes
    assert rows.shape == (8, 16)
    assert output.rows is None
    assert output.loss.item() == nt_xent(rows[:4], rows[4:], temperature=0.5).item()
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.module.parameters())
    assert method.state_dict() == {}


def test_views_are_simclrs():
    one, other = build(color_strength=0.5, blur_probability=0.0).views(64)
    assert one == other
    assert one.size == 64
    drawn = one.settings
    assert (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue) == (0.4, 0.4, 0.4, 0.1)
    assert drawn.crop_scale == (0.08, 1.0)
    assert (drawn.jitter_probability, drawn.gray_probability, drawn.blur_probability) == (0.8, 0.2, 0.0)
