"""Engines against the network as torch computes it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tinyseed.models import teacher as teachers
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder
from tinyseed.models.engines import plain
from tinyseed.models.engines.base import in_pieces
from tinyseed.models.engines.catalog import ENGINES
from tinyseed.models.engines.packed import pack
from tinyseed.models.engines.packed_layers import PackedConvolution, PackedLinear
from tinyseed.models.engines.plain import PIECE, TorchEngine
from tinyseed.models.onnx_export import ONNX_PACKAGES


def frozen(name, size=32):
    """A backbone whose residual branches count; timm begins with batch norms of scale 0."""
    backbone = build_backbone(name, seed=0, image_size=size).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for part in backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1)
                part.running_mean.normal_(0, 0.1)
    return teachers.Teacher(Encoder(backbone), name).channels_last().backbone


def images(count, size=32):
    drawn = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


def packed_layers(network, kind=PackedConvolution):
    return [part for part in network.modules() if isinstance(part, kind)]


def layers(network, kind):
    return [part for part in network.modules() if type(part) is kind]


@pytest.mark.parametrize(
    "name", ["resnet10t", "torchvision/resnet18", "mobilenetv3_small_050", "test_convnext", "test_vit"]
)
@torch.no_grad()
def test_packed_weights_give_the_same_bits_in_float32(name):
    backbone = frozen(name)
    engine, batch = TorchEngine(backbone), images(PIECE + 18)
    torch.testing.assert_close(engine(batch), backbone(batch), rtol=0, atol=0)
    packed = engine._packed[torch.float32, 32]
    assert len(packed_layers(packed)) == len(layers(backbone, nn.Conv2d))
    assert len(layers(packed, nn.Linear)) == len(layers(backbone, nn.Linear))


@torch.no_grad()
def test_relu_and_residual_become_part_of_convolutions():
    packed, _ = pack(frozen("torchvision/resnet18").network, images(2), torch.float32)
    kinds = [type(part) for part in packed.modules()]
    assert sum(layer.relu for layer in packed_layers(packed)) == 17
    assert nn.ReLU not in kinds
    assert not [
        node for node in packed.graph.nodes if node.op == "call_function" and "add" in str(node.target)
    ]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "test_vit", "test_convnext"])
@torch.no_grad()
def test_in_bfloat16_packed_weights_are_as_close_to_float32(name):
    backbone = frozen(name, 64)
    engine, batch = TorchEngine(backbone), images(PIECE, 64)
    wanted = backbone(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, torchs = engine(batch), backbone(batch)
    assert ours.dtype == torchs.dtype
    packed = engine._packed[torch.bfloat16, 64]
    assert packed_layers(packed)
    assert len(packed_layers(packed, PackedLinear)) == len(layers(backbone, nn.Linear))
    assert not layers(packed, nn.Linear)
    assert (ours - wanted).norm() < 1.1 * (torchs - wanted).norm()


@torch.no_grad()
def test_a_network_that_cannot_be_packed_is_computed_as_it_is(monkeypatch):
    backbone, batch = frozen("resnet10t"), images(PIECE)
    wanted = backbone(batch)

    def wrong(network, *_):
        return nn.Sequential(network, nn.Threshold(1e9, 1.0)), network(batch)

    def fails(*_):
        raise RuntimeError("control flow")

    for broken in (wrong, fails):
        monkeypatch.setattr(plain, "pack", broken)
        engine = TorchEngine(backbone)
        assert torch.equal(engine(batch), wanted)
        assert engine._packed[torch.float32, 32] is backbone.network


@torch.no_grad()
def test_few_images_and_other_arithmetic_are_computed_as_they_are():
    engine = TorchEngine(frozen("resnet10t").double())
    engine(images(PIECE).double())
    single = TorchEngine(frozen("resnet10t"))
    single(images(plain.FEWEST - 1))
    assert not engine._packed
    assert not single._packed


@torch.no_grad()
def test_a_teacher_with_packed_weights_can_be_copied_and_pickled():
    teacher = teachers.Teacher(Encoder(build_backbone("resnet10t", seed=0, image_size=32)), "ours")
    batch = images(20)
    rows = teacher(batch)
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(other(batch), rows)
        assert (other.digest, other.key) == (teacher.digest, teacher.digest)


def test_pieces_are_put_together_in_order():
    rows = torch.arange(14.0).reshape(7, 2)
    sizes = []
    given = in_pieces(lambda part: sizes.append(len(part)) or 2 * part, rows, 3)
    assert torch.equal(given, 2 * rows)
    assert sizes == [3, 3, 1]


@torch.no_grad()
def test_a_teacher_uses_the_engine_that_it_is_given():
    class Ones:
        key = "ones"

        def __call__(self, batch):
            return torch.ones(len(batch), 512, dtype=torch.bfloat16)

    teacher = teachers.Teacher(Encoder(build_backbone("resnet10t", seed=0, image_size=32)), "ours")
    teacher.use(Ones(), "ones")
    assert teacher.features(images(2)).dtype == torch.float32
    torch.testing.assert_close(teacher(images(2)), torch.full((2, 512), 512**-0.5))
    assert (teacher.engine, teacher.key) == ("ones", f"{teacher.digest}-ones")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cosine"), [("onnx", 0.99999), ("int8", 0.99)])
@torch.no_grad()
def test_onnx_runtime_computes_the_same_network(name, cosine):
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    backbone, batch = frozen("resnet10t"), images(PIECE + 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a run; the file is in float32 all the same
        engine = ENGINES[name].build(backbone, batch)
        given = engine(batch)
    wanted = backbone(batch)
    assert given.dtype == torch.float32
    assert torch.cosine_similarity(given, wanted).min() > cosine
    again = pickle.loads(pickle.dumps(engine))
    assert again.key == engine.key
    assert torch.equal(again(batch[:3]), given[:3])
