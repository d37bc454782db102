"""SEED and MoCo on one backbone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.data.render import normalize as normalized
from tinyseed.errors import InputError
from tinyseed.methods.base import Method, Setup
from tinyseed.methods.seed_moco import DIM, SeedMoCo, SeedMoCoSettings
from tinyseed.objectives.queue import Queue

REQUIRED = {"data": (), "out": Path(), "teacher": "resnet10t", "student": "resnet10t"}

pytestmark = pytest.mark.usefixtures("one_thread")


def method(**changes) -> SeedMoCo:
    teacher = load_teacher("resnet10t", weights="random", seed=1, image_size=32)
    settings = SeedMoCoSettings(
        **REQUIRED, **({"queue_size": 16, "image_size": 32, "encoder_momentum": 0.9} | changes)
    )
    made = SeedMoCo(Setup(settings, teacher))
    generator = torch.Generator().manual_seed(0)
    made.queue.push(normalize(torch.randn(11, teacher.dim, generator=generator), dim=1))
    made.contrast.queue.push(normalize(torch.randn(9, DIM, generator=generator), dim=1))
    return made


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 3, 32, 32, generator=generator), torch.rand(5, 3, 32, 32, generator=generator)


def scores(queries: Tensor, own: Tensor, rows: Tensor, temperature: float) -> Tensor:
    return torch.cat([(queries * own).sum(1, keepdim=True), queries @ rows.T], 1) / temperature


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_loss_and_gradient_are_those_of_both_formulas(weight):
    made = method(ssl_weight=weight)
    assert isinstance(made, Method)
    made.module.eval()
    made.contrast.key_encoder.eval()
    given = views()
    output = made.step(made.module, given, 0)
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in made.module.named_parameters()}
    made.module.zero_grad()

    first, second = (normalized(view, IMAGENET_MEAN, IMAGENET_STD) for view in given)
    features = made.module.encoder.backbone.network(first)
    student = normalize(made.module.encoder.projector(features), dim=1)
    queries = normalize(made.module.further[0](features), dim=1)
    with torch.no_grad():
        teacher, keys = made.teacher(first), made.contrast.key_encoder(second)
        target = scores(teacher, teacher, made.queue.rows(), 0.01).softmax(1)
    seed = -(target * scores(student, teacher, made.queue.rows(), 0.2).log_softmax(1)).sum(1).mean()
    logits = scores(queries, keys, made.contrast.queue.rows(), 0.2)
    moco = cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    expected = seed + weight * moco
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in found.values())
    for name, parameter in made.module.named_parameters():
        torch.testing.assert_close(
            found[name], parameter.grad, rtol=1e-3, atol=1e-5 * float(largest), msg=name
        )
    torch.testing.assert_close(output.rows, teacher, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.keys, keys, rtol=1e-4, atol=1e-5)


def test_both_networks_teach_and_only_the_student_learns():
    made = method()
    before = [parameter.clone() for parameter in made.contrast.key_encoder.parameters()]
    queues = made.queue.rows().clone(), made.contrast.queue.rows().clone()
    output = made.step(made.module, views(), 3)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in made.module.parameters())
    assert all(parameter.grad is None for parameter in made.contrast.key_encoder.parameters())
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(1.0)
    assert torch.equal(made.queue.rows(), queues[0])
    assert torch.equal(made.contrast.queue.rows(), queues[1])
    made.advance([output])
    assert torch.equal(made.queue.rows()[11:], output.rows)
    assert torch.equal(made.contrast.queue.rows()[9:], output.keys)
    backbone, (head,) = made.module.encoder.backbone, made.module.further
    trained = [*backbone.parameters(), *head.parameters()]
    for old, new, own in zip(before, made.contrast.key_encoder.parameters(), trained, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * own, rtol=1e-5, atol=1e-6)


def test_the_state_is_both_queues_and_the_key_encoder():
    one, other = method(), method(seed=4)
    with torch.no_grad():
        for parameter in one.contrast.key_encoder.parameters():
            parameter.mul_(0.5)
    one.contrast.queue.push(normalize(torch.randn(3, DIM), dim=1))
    one.queue.push(normalize(torch.randn(2, one.queue.dim), dim=1))
    state = {name: value.clone() for name, value in one.state_dict().items()}
    other.load_state_dict(state)
    assert {name: value.tolist() for name, value in other.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }
    assert len(other.contrast.queue) == 12
    assert not any("teacher" in name for name in (*state, *one.module.state_dict()))
    assert isinstance(one.teacher_queues()[0], Queue)


def test_the_heads_begin_with_other_weights_and_the_key_encoder_with_the_students():
    made = method()
    for own, key in zip(
        made.contrast.trained.parameters(), made.contrast.key_encoder.parameters(), strict=True
    ):
        assert torch.equal(own, key)
        assert own.data_ptr() != key.data_ptr()
    first, second = made.module.encoder.projector[0].weight, made.module.further[0][0].weight
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    again = method().module.further[0][0].weight
    assert torch.equal(second, again)
    assert not torch.equal(second, method(seed=1).module.further[0][0].weight)


def test_two_views_of_which_the_teacher_sees_one():
    made = method()
    both = made.views(32)
    assert both[0] == both[1]
    assert made.taught(both) == both[:1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mixup": 0.5}, "mixup=0.5: MoCo looks for the image in its other view"),
        ({"ssl_weight": -1.0}, "ssl_weight=-1.0: give a number from 0"),
        ({"ssl_temperature": 0.0}, "ssl_temperature=0.0: give a number above 0"),
        ({"encoder_momentum": 1.5}, "encoder_momentum=1.5: give a number from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_meant(given, told):
    with pytest.raises(InputError, match=told):
        SeedMoCoSettings(**REQUIRED, **given).check()
