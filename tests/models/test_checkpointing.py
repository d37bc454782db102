"""Checkpointed blocks against the same network without them: bits of outputs, gradients and statistics."""

import copy

import pytest
import torch
from torch import nn

from tinyseed.models.backbones import build_backbone
from tinyseed.models.checkpointing import blocks, checkpoint_blocks


def network(name, size):
    module = build_backbone(name, seed=0, image_size=size).network
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
    return module.train()


def trained(module, images, *, steps=2, autocast=False):
    """Outputs of some steps of descent, then gradients and state."""
    found = []
    for step in range(steps):
        torch.manual_seed(step)  # dropout draws
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = module(images)
        output.float().square().sum().backward()
        found.append(output.detach())
        for parameter in module.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad)
                parameter.data -= 1e-3 * parameter.grad
                parameter.grad = None
        found.append(torch.rand(1))  # the generator stands where it stood
    return [*found, *module.state_dict().values()]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "name",
    ["resnet10t", "torchvision/resnet18", "torchvision/mobilenet_v3_small", "test_vit", "test_convnext"],
)
def test_training_is_the_same_to_the_bit(name, autocast):
    size = 160 if name == "test_vit" else 32
    plain = network(name, size)
    saving = copy.deepcopy(plain)
    assert checkpoint_blocks(saving) > 1
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        trained(plain, images, autocast=autocast), trained(saving, images, autocast=autocast), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)
    assert list(plain.state_dict()) == list(saving.state_dict())


def test_activations_inside_of_blocks_are_not_kept():
    def kept(module):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            module(torch.randn(4, 3, 64, 64))
        return sum(sizes)

    plain = network("resnet10t", 64)
    saving = copy.deepcopy(plain)
    checkpoint_blocks(saving)
    assert kept(saving) < 0.6 * kept(plain)


def test_a_copy_checkpoints_its_own_blocks():
    module = network("resnet10t", 32)
    checkpoint_blocks(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert other(torch.randn(2, 3, 32, 32)).abs().max() > 0


def test_blocks_of_a_residual_network_are_its_residual_blocks():
    found = list(blocks(network("torchvision/resnet18", 32)))
    assert [type(block).__name__ for block in found] == ["BasicBlock"] * 8
    assert not list(blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))
