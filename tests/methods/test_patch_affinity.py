"""Patch affinity beside SEED's loss."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.data.render import normalize as normalized
from tinyseed.errors import InputError
from tinyseed.methods.base import Setup
from tinyseed.methods.seed import Seed, SeedSettings, build
from tinyseed.objectives.seed import seed_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def method(**changes) -> Seed:
    given = {
        "student": "resnet10t",
        "queue_size": 16,
        "image_size": 64,
        "patch_affinity_weight": 0.5,
    } | changes
    size = given.pop("teacher_size", 128)
    teacher = load_teacher(
        given.setdefault("teacher", "resnet10t"), weights="random", seed=1, image_size=size
    )
    settings = SeedSettings(data=(), out=Path(), **given)
    made = build(Setup(settings, teacher))
    rows = torch.randn(11, teacher.dim, generator=torch.Generator().manual_seed(0))
    made.queue.push(normalize(rows, dim=1))
    return made


def affinities(cells: Tensor, temperature: float) -> Tensor:
    """[n, f, h, w] to the logarithms [n, p, p] of distributions over the other cells."""
    unit = normalize(cells.flatten(2), dim=1)
    scores = torch.einsum("nfa,nfb->nab", unit, unit) / temperature
    scores = scores.masked_fill(torch.eye(scores.shape[1], dtype=torch.bool), -1e30)
    return scores.log_softmax(2)


def test_loss_and_gradient_are_seeds_and_the_weighted_divergence_of_the_maps():
    made = method(patch_affinity_temperature=0.05)  # random networks look alike everywhere in evaluation mode
    view = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    output = made.step(made.module, (view,), 0)
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in made.encoder.named_parameters()}
    made.module.zero_grad()

    small = torch.nn.functional.interpolate(view, 64, mode="bilinear", antialias=True)
    network = made.encoder.backbone.network
    maps = network.forward_features(normalized(small, IMAGENET_MEAN, IMAGENET_STD))
    seen = normalized(view, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        frozen = made.teacher.backbone.network.forward_features(seen)
        assert (maps.shape[2:], frozen.shape[2:]) == ((2, 2), (4, 4))
        target = affinities(adaptive_avg_pool2d(frozen, 2), 0.05)
        teacher = made.teacher(seen)
    divergence = (target.exp() * (target - affinities(maps, 0.05))).sum(2).mean()
    student = normalize(made.encoder.projector(network.forward_head(maps)), dim=1)
    expected = seed_loss(student, teacher, made.queue.rows()) + 0.5 * divergence
    assert divergence.item() > 0.001
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    largest = float(max(gradient.abs().max() for gradient in found.values()))
    for name, parameter in made.encoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-2, atol=1e-4 * largest, msg=name)
    torch.testing.assert_close(output.rows, teacher, rtol=1e-4, atol=1e-5)


def test_without_a_weight_nothing_else_is_trained_or_asked_for():
    made = method(patch_affinity_weight=0.0, teacher_size=64)
    assert made.module is made.encoder
    made.targets.together = None
    output = made.step(made.module, (torch.rand(4, 3, 64, 64),), 0)
    assert output.loss.isfinite()
    assert made.teacher_queues() == (made.queue,)


def test_one_pass_of_each_network_gives_all():
    made = method(teacher_size=64)
    passes: list[tuple[str, ...]] = []
    ask = made.teacher.outputs
    made.teacher.outputs = lambda seen, wanted: (passes.append(tuple(wanted)), ask(seen, wanted))[1]
    calls: list[int] = []
    made.encoder.backbone.network.conv1.register_forward_hook(lambda *_: calls.append(1))
    output = made.step(made.module, (torch.rand(4, 3, 64, 64),), 0)
    assert passes == [("rows", "patches")]
    assert len(calls) == 1
    made.advance([output])
    assert torch.equal(made.queue.rows()[11:], output.rows)
    assert made.teacher_queues() == ()


def test_beside_crops_the_places_of_the_first_view_are_compared():
    crops = {"large_crops": 2, "small_crops": 2, "small_crop_weight": 0.7, "teacher_size": 64}
    made, plain = method(**crops), method(**crops, patch_affinity_weight=0.0)
    for each in (made, plain):
        each.module.eval()
        each.small_queue.push(each.queue.rows()[3:9])
    generator = torch.Generator().manual_seed(2)
    views = tuple(torch.rand(3, 3, view.size, view.size, generator=generator) for view in made.views(64))
    assert len({view.shape for view in views}) == 2
    with torch.no_grad():
        output, without = (each.step(each.module, views, 0) for each in (made, plain))
        seen = normalized(views[0], IMAGENET_MEAN, IMAGENET_STD)
        maps = [
            network.forward_features(seen)
            for network in (made.encoder.backbone.network, made.teacher.backbone.network)
        ]
        own, target = (affinities(each, 0.1) for each in maps)
    divergence = (target.exp() * (target - own)).sum(2).mean()
    assert output.loss.item() == pytest.approx((without.loss + 0.5 * divergence).item(), rel=1e-5)
    torch.testing.assert_close(output.rows, without.rows, rtol=1e-4, atol=1e-5)
    made.advance([output])
    assert (len(made.queue), len(made.small_queue)) == (14, 9)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": 32}, r"student=resnet10t: its last feature map has a single cell.*`image_size`"),
        (
            {"student": "torchvision/squeezenet1_1"},
            r"student=torchvision/squeezenet1_1: `patch_affinity_weight` needs a square grid",
        ),
        (
            {"teacher": "torchvision/squeezenet1_1"},
            r"teacher=torchvision/squeezenet1_1, weights random: .*does not give them",
        ),
        ({"teacher_engine": "onnx"}, r"teacher_engine=onnx: gives no patches.*give torch"),
    ],
)
def test_networks_without_patches_are_refused(changes, told):
    with pytest.raises(InputError, match=told):
        method(**changes)


def test_a_teacher_whose_map_is_one_cell_is_refused():
    made = method(teacher_size=32)
    with pytest.raises(
        InputError, match=r"teacher=resnet10t, weights random: its last feature map has a single cell"
    ):
        made.step(made.module, (torch.rand(4, 3, 64, 64),), 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"patch_affinity_weight": -1.0}, "patch_affinity_weight=-1.0: give a number from 0"),
        ({"patch_affinity_temperature": 0.0}, "patch_affinity_temperature=0.0: give a number above 0"),
    ],
)
def test_settings_that_cannot_be_meant(given, told):
    settings = SeedSettings(data=("a",), out=Path(), teacher="resnet10t", student="resnet10t", **given)
    with pytest.raises(InputError, match=told):
        settings.check()
