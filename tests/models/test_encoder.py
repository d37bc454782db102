import numpy as np
import pytest
import torch
from torch import nn

from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, Projector, build_projector, freeze


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def encoder(name="mobilenetv3_small_050", kind="mlp", *, seed=0, hidden=None, **settings):
    backbone = build_backbone(name, seed=seed, image_size=settings.pop("image_size", 32), **settings)
    return Encoder(backbone, build_projector(kind, backbone.width, 16, hidden, seed=seed))


def test_projectors_have_the_layers_that_they_are_named_for():
    assert build_projector("none", 8, 4) is None
    linear = build_projector("linear", 8, 4)
    mlp = build_projector("mlp", 8, 4)
    wide = build_projector("mlp", 8, 4, 32)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    shapes = [[tuple(parameter.shape) for parameter in head.parameters()] for head in (linear, mlp, wide)]
    assert shapes[0] == [(4, 8), (4,)]
    assert shapes[1] == [(8, 8), (8,), (4, 8), (4,)]
    assert shapes[2] == [(32, 8), (32,), (4, 32), (4,)]


def test_projectors_with_batch_norm_are_simclrs_and_swavs():
    two, three = build_projector("mlp-bn", 8, 4, 16), build_projector("mlp-bn-3", 8, 4, 16)
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in two] == [*block, nn.Linear]
    assert [type(layer) for layer in three] == [*block, *block, nn.Linear]
    assert [layer.in_features for layer in three if isinstance(layer, nn.Linear)] == [8, 16, 16]


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("kind", ["mlp", "mlp-bn"])
def test_a_deeper_projector_repeats_its_hidden_layer(kind, layers):
    head = build_projector(kind, 8, 4, 16, layers=layers)
    block = [nn.Linear, nn.ReLU] if kind == "mlp" else [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in head] == block * (layers - 1) + [nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert sizes == [(8, 16), *[(16, 16)] * (layers - 2), (16, 4)]


def test_the_usual_number_of_layers_is_the_usual_projector():
    deeper, usual = (build_projector("mlp-bn", 8, 4, 16, layers=layers, seed=0) for layers in (2, None))
    assert deeper.kind == usual.kind == "mlp-bn"
    assert all(map(torch.equal, deeper.parameters(), usual.parameters()))
    assert build_projector("mlp-bn", 8, 4, layers=3).kind == "mlp-bn-3"


@pytest.mark.parametrize(("kind", "layers"), [("linear", 2), ("mlp-bn-3", 4), ("mlp", 1)])
def test_other_projectors_have_no_number_of_layers(kind, layers):
    with pytest.raises(ValueError, match=f"a {kind} head cannot have {layers} layers"):
        build_projector(kind, 8, 4, layers=layers)


def test_a_projector_follows_its_seed():
    weights = [build_projector("mlp", 8, 4, seed=seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", ["mlp", "linear", "none"])
def test_rows_are_projected_and_normalised(kind):
    """Against NumPy in float64 on the same features."""
    network = encoder(kind=kind).eval()
    with torch.no_grad():
        rows, features = network(images()), network.features(images())
    wanted = features.double().numpy()
    layers = [] if network.projector is None else list(network.projector)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            wanted = wanted @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        else:
            wanted = np.maximum(wanted, 0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert rows.shape == (3, network.dim)
    assert network.dim == (1024 if kind == "none" else 16)
    assert network.width == features.shape[1] == 1024
    np.testing.assert_allclose(rows.numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_unit_float32_under_autocast(dtype):
    network = encoder("resnet10t").eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        rows, features = network(images()), network.features(images())
    assert rows.dtype == features.dtype == torch.float32
    norms = np.linalg.norm(rows.double().numpy(), axis=1)
    np.testing.assert_allclose(norms, 1, atol=3e-7)  # rows rounded to bfloat16 would be off by 1e-3


def test_float64_stays_float64():
    network = encoder("resnet10t").double().eval()
    assert network(images().double()).dtype == torch.float64


def test_a_row_of_zeros_has_a_finite_gradient():
    network = encoder("resnet10t").eval()
    nn.init.zeros_(network.projector[2].weight)
    nn.init.zeros_(network.projector[2].bias)
    rows = network(images())
    rows.sum().backward()
    gradient = network.projector[2].weight.grad
    assert torch.equal(rows, torch.zeros_like(rows))
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e8


def test_freeze():
    network = freeze(encoder("resnet10t"))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_projector_keeps_its_shape():
    head = Projector("mlp", 8, 4, 6)
    assert (head.kind, head.width, head.dim, head.hidden) == ("mlp", 8, 4, 6)


def test_another_input_contract_leaves_the_encoder_as_it_was():
    network = encoder("resnet10t").eval()
    before = network.input
    other = network.with_input(InputContract(size=64))
    assert (other.input.size, network.input) == (64, before)
    assert other.backbone.network is network.backbone.network
    assert other.projector is network.projector
    assert not any(module.training for module in other.modules())
    with torch.no_grad():
        assert torch.equal(other(images()), network(images()))
