import pytest
import timm
import torch
from torch import nn

from tinyseed.checkpoints.load import load_teacher
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.teacher import Teacher, weights_digest


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(given, wanted):
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=2e-6 * wanted.abs().max().item())


def encoder(name="mobilenetv3_small_050", seed=0):
    backbone = build_backbone(name, seed=seed, image_size=32)
    return Encoder(backbone, build_projector("mlp", backbone.width, 16, seed=seed))


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("resnet10t", weights="random", image_size=32)


class Holder(nn.Module):
    """As a method could hold its teacher."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher
        self.student = nn.Linear(2, 2)


def test_a_module_that_holds_it_has_none_of_it(teacher):
    holder = Holder(teacher)
    assert not isinstance(teacher, nn.Module)
    assert len(list(holder.parameters())) == 2
    assert list(holder.buffers()) == []
    assert list(holder.state_dict()) == ["student.weight", "student.bias"]


def test_train_does_not_reach_it(teacher):
    before, rows = weights_digest(teacher._encoder.state_dict()), teacher(images())
    holder = Holder(teacher).train().double().requires_grad_(True)
    assert torch.equal(holder.teacher(images()), rows)
    assert weights_digest(teacher._encoder.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in teacher._encoder.parameters())


def test_rows_are_constants_that_a_student_can_learn_from(teacher):
    student = torch.randn(3, teacher.dim, requires_grad=True)
    batch = images().requires_grad_(True)
    rows = teacher(batch)
    assert not rows.requires_grad
    assert not rows.is_inference()
    (student * rows).sum().backward()
    torch.testing.assert_close(student.grad, rows)
    assert batch.grad is None


def test_a_named_teacher_gives_normalized_features(teacher):
    features = teacher.features(images())
    assert teacher.dim == teacher.width == features.shape[1] == 512
    torch.testing.assert_close(teacher(images()), features / features.norm(dim=1, keepdim=True))
    assert teacher.spec == "resnet10t, weights random"
    assert teacher.parameters_count == sum(
        p.numel() for p in timm.create_model("resnet10t", num_classes=0).parameters()
    )
    assert (teacher.mean, teacher.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_memory_format_changes_nothing(teacher):
    moved = load_teacher("resnet10t", weights="random", image_size=32).to("cpu").channels_last()
    batch = images()
    close(moved(batch.to(memory_format=torch.channels_last)), teacher(batch))
    assert next(moved._encoder.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert moved.digest == teacher.digest


def test_digests_tell_weights_apart(teacher):
    assert len(teacher.digest) == 16
    assert teacher.digest != load_teacher("resnet10t", weights="random", image_size=32, seed=1).digest
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        state | {"a": torch.zeros(3, 2)},
        state | {"a": torch.zeros(2, 3).half()},
        {"c": state["a"], "b": state["b"]},
    ]
    digests = {weights_digest(each) for each in (state, *others)}
    assert len(digests) == 4
    assert weights_digest({"s": torch.tensor(1)}) != weights_digest({"s": torch.tensor(2)})


def test_a_random_teacher_is_no_student_of_the_same_seed():
    student = build_backbone("resnet10t", seed=0, image_size=32)
    assert load_teacher("resnet10t", weights="random", image_size=32, seed=0).digest != weights_digest(
        Encoder(student).state_dict()
    )


def test_an_encoder_at_hand_makes_a_teacher_and_stays_as_it_was():
    network = encoder("resnet10t").train()
    before = weights_digest(network.state_dict())
    teacher = Teacher(network, "ours")
    assert (teacher.spec, teacher.dim, teacher.input.size) == ("ours", 16, 32)
    assert teacher.digest == before == weights_digest(network.state_dict())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_one_pass_gives_what_two_give(dtype):
    frozen = Teacher(encoder("resnet10t"), "t")
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        features, rows = frozen.both(images())
        assert torch.equal(features, frozen.features(images()))
        assert torch.equal(rows, frozen(images()))
    assert features.dtype == rows.dtype == torch.float32
