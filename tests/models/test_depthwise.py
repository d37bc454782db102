"""Gradients of depthwise convolutions under autocast, against float64 and against torch's own."""

import copy

import pytest
import torch
from torch import nn

from tinyseed.models.backbones import build_backbone
from tinyseed.models.depthwise import gradients_in_float32


def in_bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def gradients(layer, images, gradient):
    images = images.clone().requires_grad_()
    with in_bf16():
        output = layer(images)
    output.backward(gradient.to(output.dtype))
    found = [output.detach(), images.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2)])
def test_gradients_are_those_of_the_rounded_inputs(kernel, stride, dilation, bias):
    plain = nn.Conv2d(6, 6, kernel, stride, dilation * (kernel // 2), dilation, groups=6, bias=bias)
    ours = copy.deepcopy(plain)
    assert gradients_in_float32(ours) == 1
    images = torch.randn(3, 6, 9, 8).bfloat16().float().contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(plain(images)).bfloat16()
    given, torchs = gradients(ours, images, gradient), gradients(plain, images, gradient)
    assert torch.equal(given[0], torchs[0])
    exact = copy.deepcopy(plain).double()
    wide = images.double().requires_grad_()
    exact(wide).backward(gradient.double())
    wanted = [wide.grad, exact.weight.grad, *([exact.bias.grad] if bias else [])]
    # The gradient of the images leaves in bfloat16, and uses unrounded weights; that of the weights is float32's.
    torch.testing.assert_close(given[1].double(), wanted[0], rtol=1e-2, atol=1e-3)
    for mine, theirs in zip(given[2:], wanted[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def trained(network, images, *, bf16=True):
    """Outputs, and the gradients of all parameters as one vector."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = network(images)
    (output.float() * torch.linspace(-1, 1, output.shape[1])).sum().backward()
    return output.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def test_a_network_keeps_its_outputs_and_names_and_its_gradients_are_as_exact():
    plain = build_backbone("mobilenetv3_small_050", seed=0, image_size=64).network.train()
    exact, ours = copy.deepcopy(plain), copy.deepcopy(plain)
    assert gradients_in_float32(ours) == 11
    assert list(ours.state_dict()) == list(plain.state_dict())
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    _, wanted = trained(exact, images, bf16=False)
    (output, torchs), (same, given), (again, copied) = (
        trained(network, images) for network in (plain, ours, copy.deepcopy(ours))
    )
    assert torch.equal(output, same)
    assert torch.equal(output, again)
    assert torch.equal(given, copied)
    assert (given - wanted).norm() < 1.2 * (torchs - wanted).norm()


def test_float32_and_other_convolutions_stay_as_they_are():
    layer = nn.Conv2d(4, 8, 3, groups=4)
    assert gradients_in_float32(nn.Sequential(layer, nn.Conv2d(4, 4, 1))) == 0
    plain = nn.Conv2d(4, 4, 3, groups=4)
    ours = copy.deepcopy(plain)
    gradients_in_float32(ours)
    images = torch.randn(2, 4, 6, 6)
    for network in (plain, ours):
        network(images).square().sum().backward()
    assert torch.equal(plain.weight.grad, ours.weight.grad)
