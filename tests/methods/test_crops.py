"""Small crops beside the views of SEED: both networks see them, against a queue of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.errors import InputError
from tinyseed.methods.crops import require_small_crops, small_crop_size
from tinyseed.methods.seed import Seed, SeedSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.crops import CropEncoder
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.queue import Queue

REQUIRED = {"data": (), "out": Path(), "teacher": "resnet10t", "student": "resnet10t", "image_size": 32}
IMAGES, SMALL, WEIGHT = 3, 2, 0.7


def unit(n: int, dim: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def build(teacher: str = "resnet10t", teacher_size: int = 32, **changes) -> Seed:
    given = {"small_crops": SMALL, "small_crop_weight": WEIGHT, "teacher_temperature": 0.05} | changes
    settings = SeedSettings(**(REQUIRED | given))
    settings.check()
    frozen = load_teacher(teacher, weights="random", seed=1, image_size=teacher_size)
    backbone = build_backbone("mobilenetv3_small_050", seed=2, image_size=32)
    student = Encoder(backbone, build_projector("mlp", backbone.width, frozen.dim, None, seed=3))
    filled = [Queue(16, frozen.dim) for _ in range(2)]
    for seed, queue in enumerate(filled):
        queue.push(unit(11, frozen.dim, seed))
    method = Seed(
        settings, student, frozen, filled[0], small_queue=filled[1] if settings.small_crops else None
    )
    method.module.eval()
    return method


def drawn(method: Seed) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sides = [view.size for view in method.views(32)]
    return tuple(torch.rand(IMAGES, 3, side, side, generator=generator) for side in sides)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def seed_formula(student: np.ndarray, teacher: np.ndarray, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy over the queue and the own row in float64, and its gradient to the student's rows."""

    def scores(vectors: np.ndarray, temperature: float) -> np.ndarray:
        own = (vectors * teacher).sum(1, keepdims=True)
        return np.concatenate([own, vectors @ rows.T], 1) / temperature

    log_p, target = log_softmax(scores(student, 0.2)), np.exp(log_softmax(scores(teacher, 0.05)))
    excess = np.exp(log_p) - target
    gradient = excess[:, :1] * teacher + excess[:, 1:] @ rows
    return -(target * log_p).sum(1).mean(), gradient / (0.2 * len(student))


@pytest.mark.parametrize("large", [1, 2])
def test_loss_and_gradient_are_the_formula_over_all_views_and_two_queues(large):
    method, found = build(large_crops=large), []
    assert isinstance(method.module, CropEncoder)
    views = drawn(method)
    assert [view.shape[-1] for view in views] == [32] * large + [16] * SMALL

    def forward(*seen: torch.Tensor) -> torch.Tensor:
        found.append(method.module(*seen).detach().requires_grad_())
        return found[0]

    output = method.step(forward, views, step=0)
    output.loss.backward()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    normalized = [(view - mean) / std for view in views]
    teacher = [method.teacher(view).double().numpy() for view in normalized]
    student = [method.encoder(view).detach().double().numpy() for view in normalized]
    expected, gradients = 0.0, []
    for places, queue, weight in (
        (slice(0, large), method.queue, 1.0),
        (slice(large, None), method.small_queue, WEIGHT),
    ):
        rows = queue.rows().double().numpy()
        loss, gradient = seed_formula(np.concatenate(student[places]), np.concatenate(teacher[places]), rows)
        expected += weight * loss
        gradients.append(weight * gradient)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found[0].grad.numpy(), np.concatenate(gradients), rtol=1e-3, atol=1e-6)
    # one row of each image and kind waits for its queue: that of the first view of the kind
    np.testing.assert_allclose(output.rows.numpy(), np.concatenate([teacher[0], teacher[large]]), atol=1e-6)
    method.advance([output])
    assert torch.equal(method.queue.rows()[11:], output.rows[:IMAGES])
    assert torch.equal(method.small_queue.rows()[11:], output.rows[IMAGES:])


def test_two_views_alone_need_no_second_queue():
    method = build(large_crops=2, small_crops=0)
    assert method.teacher_queues() == (method.queue,)
    views = drawn(method)
    assert [view.shape[-1] for view in views] == [32, 32]
    both = method.step(method.module, views, 0)
    single = build(large_crops=1, small_crops=0)
    assert single.module is single.encoder
    each = [single.step(single.module, (view,), 0).loss.item() for view in views]
    assert both.loss.item() == pytest.approx(sum(each) / 2, rel=1e-5)
    assert len(both.rows) == IMAGES


def test_views_are_of_the_augmentation_with_crops_of_their_own():
    method = build(crop_scale=(0.3, 0.9), color_jitter=(0.1, 0.2, 0.3, 0.05), blur_probability=0.1)
    large, *small = method.views(32)
    assert (large.settings.crop_scale, large.size) == ((0.3, 0.9), 32)
    for view in small:
        assert (view.settings.crop_scale, view.size) == ((0.05, 0.14), 16)
        assert (view.settings.hue, view.settings.blur_probability) == (0.05, 0.1)


@pytest.mark.parametrize(
    ("teacher", "teacher_size", "side"),
    [
        ("resnet10t", 32, 16),  # a convolutional network sees the small crop as the student does
        ("resnet10t", 64, 32),  # the same part of its own size
        ("test_vit", 32, 16),  # a transformer of any size, too: 16 is a multiple of its patch
        ("test_vit", 48, 32),  # 24 is none
        ("vit_tiny_patch16_224.augreg_in21k", 32, 16),
        ("torchvision/vit_b_32", 224, 224),  # this one takes its own size only
    ],
)
def test_the_teacher_sees_small_crops_small_if_it_can(teacher, teacher_size, side):
    method = build(teacher, teacher_size)
    seen: list[int] = []
    views = drawn(method)
    assert [view.shape[-1] for view in views] == [teacher_size, side, side]
    targets, asked = method.targets, method.targets.teacher

    class Looking:
        def __getattr__(self, name):
            return getattr(asked, name)

        def __call__(self, images):
            seen.append(images.shape[-1])
            return asked(images)

    targets.teacher = Looking()
    output = method.step(method.module, views, 0)
    assert seen == [teacher_size, side, side]
    assert torch.isfinite(output.loss)


def test_the_state_holds_both_queues_and_none_is_taken_for_the_other():
    one, other = build(), build()
    state = {name: value.clone() for name, value in one.state_dict().items()}
    assert sorted(state) == [*("buffer", "filled", "next"), *("small.buffer", "small.filled", "small.next")]
    for queue in other.teacher_queues():
        queue.push(unit(9, other.teacher.dim, 7))
    other.load_state_dict(state)
    for left, right in zip(one.teacher_queues(), other.teacher_queues(), strict=True):
        assert torch.equal(left.rows(), right.rows())
    assert not torch.equal(other.queue.rows(), other.small_queue.rows())
    assert sorted(build(small_crops=0).state_dict()) == ["buffer", "filled", "next"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"large_crops": 3}, "large_crops=3: give a number from 1 to 2"),
        ({"large_crops": 0}, "large_crops=0: give a number from 1 to 2"),
        ({"small_crops": -1}, "small_crops=-1: give a number from 0 to 64"),
        ({"small_crop_size": 4}, "small_crop_size=4: give a number from 8"),
        ({"small_crop_scale": (0.2, 0.1)}, "small_crop_scale=0.2 0.1: give two fractions"),
        ({"small_crop_weight": 0.0}, "small_crop_weight=0.0: give a number above 0"),
        ({"teacher_engine": "onnx"}, "teacher_engine=onnx: computes images of one size only; give torch"),
    ],
)
def test_wrong_values_are_refused_in_one_line(given, message):
    with pytest.raises(InputError) as caught:
        SeedSettings(**(REQUIRED | {"small_crops": 2} | given)).check()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_student_that_takes_no_small_crops_is_refused():
    backbone = build_backbone("torchvision/vit_b_32", seed=0, image_size=64)
    student = Encoder(backbone, None).train()
    with pytest.raises(
        InputError, match=r"small_crop_size=24: torchvision/vit_b_32 cannot take crops of 24 px"
    ):
        require_small_crops(student, 24, "student")
    assert student.training


def test_the_automatic_size_is_three_sevenths_in_steps_of_8():
    assert [small_crop_size("auto", side) for side in (16, 32, 64, 96, 112, 160, 224)] == [
        8,
        16,
        24,
        40,
        48,
        72,
        96,
    ]
