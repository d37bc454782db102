import pytest
import torch
from torch import nn

from tinyseed.models.backbones import build_backbone
from tinyseed.models.folding import fold_batch_norm


def count(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def trained(name):
    """A network whose batch norms all do something."""
    network = build_backbone(name, seed=0, image_size=32).network
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet10t", 0), ("mobilenetv3_small_050", 0), ("torchvision/resnet18", 0), ("repvgg_a0", 17)],
)
def test_the_folded_network_is_the_same_function(name, left):
    network = trained(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network, 32)
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, given = network.double()(images.double()), folded(images)
    error = (given - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5
    assert count(folded) == left < count(network)
    assert all(torch.equal(value, before[key]) for key, value in network.float().state_dict().items())


def test_networks_without_batch_norm_come_back():
    network = trained("test_vit")
    assert fold_batch_norm(network, 32) is network


class Branching(nn.Module):
    """torch.fx cannot follow it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        maps = self.norm(self.conv(images))
        return maps.mean(dim=(2, 3)) if maps.mean() > 0 else maps.amax(dim=(2, 3))


class Shared(nn.Module):
    """The convolution's maps are wanted before batch norm, too, or the same layer comes twice."""

    def __init__(self, *, twice):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), twice

    def forward(self, images):
        maps = self.conv(images)
        maps = self.norm(self.conv(self.norm(maps))) if self.twice else maps + self.norm(maps)
        return maps.mean(dim=(2, 3))


class Scaled(nn.Conv2d):
    """A convolution that does more than its weights say."""

    def forward(self, input):
        return 2 * super().forward(input)


class Simple(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "network",
    [
        Branching(),
        Shared(twice=False),
        Shared(twice=True),
        Simple(Scaled(3, 4, 3), nn.BatchNorm2d(4)),
        Simple(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_cannot_be_folded_comes_back(network):
    network.eval()
    assert fold_batch_norm(network, 16) is network


def test_a_copy_that_computes_something_else_is_thrown_away():
    network = Simple(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.constant_(network[1].weight, 3)
    assert count(fold_batch_norm(network, 16)) == 0
    network[0].register_forward_hook(
        lambda module, inputs, output: output + inputs[0].mean() + module.weight.sum()
    )
    assert fold_batch_norm(network, 16) is network
