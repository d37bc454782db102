import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.augmentation import ViewSettings
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.errors import InputError
from tinyseed.methods.base import Method
from tinyseed.methods.seed import Seed, SeedSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.queue import Queue

REQUIRED = {"data": (), "out": Path(), "teacher": "resnet10t", "student": "resnet10t"}


@pytest.fixture(scope="module")
def method() -> Seed:
    teacher = load_teacher("resnet10t", weights="random", seed=1, image_size=32)
    backbone = build_backbone("mobilenetv3_small_050", seed=2, image_size=32)
    student = Encoder(backbone, build_projector("mlp", backbone.width, teacher.dim, None, seed=3))
    queue = Queue(16, teacher.dim)
    queue.push(torch.nn.functional.normalize(torch.randn(11, teacher.dim), dim=1))
    return Seed(SeedSettings(**REQUIRED), student, teacher, queue)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def test_a_step_is_the_papers_formula_on_one_view_of_both_networks(method):
    assert isinstance(method, Method)
    method.module.eval()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    output = method.step(method.module, (images,), step=0)
    normalised = (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
        3, 1, 1
    )
    student = method.module(normalised).detach().double().numpy()
    teacher = method.teacher(normalised).double().numpy()
    rows = method.queue.rows().double().numpy()

    def scores(vectors: np.ndarray, temperature: float) -> np.ndarray:
        own = (vectors * teacher).sum(1, keepdims=True)
        return np.concatenate([own, vectors @ rows.T], 1) / temperature

    target = log_softmax(scores(teacher, 0.01))
    expected = -(np.exp(target) * log_softmax(scores(student, 0.2))).sum(1).mean()
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(output.target_entropy) == pytest.approx(
        -(np.exp(target) * target).sum(1).mean(), rel=1e-4, abs=1e-6
    )
    np.testing.assert_allclose(output.rows.numpy(), teacher, atol=1e-6)


def test_only_the_student_learns_and_the_queue_changes_only_when_it_is_told(method):
    before = method.queue.rows().clone()
    output = method.step(method.module, (torch.rand(3, 3, 32, 32),), step=1)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.module.parameters())
    assert torch.equal(method.queue.rows(), before)
    method.advance([output])
    assert len(method.queue) == len(before) + 3
    assert any(torch.equal(row, output.rows[0]) for row in method.queue.rows())
    names = set(method.module.state_dict()) | set(method.state_dict())
    assert not any("teacher" in name for name in names)


def test_the_state_is_the_queues(method):
    state = {name: value.clone() for name, value in method.state_dict().items()}
    other = Seed(method.settings, method.module, method.teacher, Queue(16, method.teacher.dim))
    other.load_state_dict(state)
    assert torch.equal(other.queue.rows(), method.queue.rows())


def resolutions(student_size: int, teacher_size: int) -> Seed:
    teacher = load_teacher("test_vit", weights="random", seed=1, image_size=teacher_size)
    backbone = build_backbone("mobilenetv3_small_050", seed=2, image_size=student_size)
    student = Encoder(backbone, build_projector("mlp", backbone.width, teacher.dim, None, seed=3))
    return Seed(SeedSettings(**REQUIRED), student, teacher, Queue(16, teacher.dim))


@pytest.mark.parametrize(("student_size", "teacher_size"), [(32, 48), (64, 32)])
def test_each_network_sees_the_one_view_at_its_own_resolution_and_normalisation(student_size, teacher_size):
    method = resolutions(student_size, teacher_size)
    method.module.eval()
    method.queue.push(torch.nn.functional.normalize(torch.randn(11, method.teacher.dim), dim=1))
    (view,) = method.views(student_size)
    assert view.size == max(student_size, teacher_size)
    images = torch.rand(4, 3, view.size, view.size, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return method.module(batch)

    output = method.step(forward, (images,), step=0)

    def expected(size: int, mean: float | tuple, std: float | tuple, mode: InterpolationMode) -> torch.Tensor:
        smaller = resize(images, [size, size], mode, antialias=True).clamp(0, 1)
        return (smaller - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    student = expected(student_size, IMAGENET_MEAN, IMAGENET_STD, InterpolationMode.BICUBIC)
    torch.testing.assert_close(seen[0], student, rtol=1e-4, atol=1e-4)
    for_teacher = expected(teacher_size, 0.5, 0.5, InterpolationMode.BICUBIC)  # test_vit's own contract
    torch.testing.assert_close(output.rows, method.teacher(for_teacher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "crops", "jitter", "probability"),
    [
        ("moco-v2", (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8),
        ("moco-v1", (0.2, 1.0), (0.4, 0.4, 0.4, 0.4), 1.0),
        ("simclr", (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8),
        ("swav", (0.14, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8),
    ],
)
def test_views_of_each_augmentation_and_of_ones_own(method, name, crops, jitter, probability):
    def drawn(**more):
        method.settings = SeedSettings(**REQUIRED, augmentation=name, blur_probability=0.25, **more)
        method.settings.check()
        (view,) = method.views(32)
        given = view.settings
        assert (given.jitter_probability, given.blur_probability) == (probability, 0.25)
        return given.crop_scale, (given.brightness, given.contrast, given.saturation, given.hue)

    assert drawn() == (crops, jitter)
    assert drawn(crop_scale=(0.5, 0.75)) == ((0.5, 0.75), jitter)
    assert drawn(color_jitter=(0.1, 0.2, 0.3, 0.0)) == (crops, (0.1, 0.2, 0.3, 0.0))


def test_the_default_augmentation_is_the_papers(method):
    method.settings = SeedSettings(**REQUIRED)
    assert method.views(32)[0].settings == ViewSettings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale=0.0 1.0: give two fractions"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale=0.5 0.2: give two fractions"),
        ({"crop_scale": (0.5,)}, "crop_scale=0.5: give two fractions"),
        ({"crop_scale": (0.5, math.nan)}, "crop_scale=0.5 nan: give two fractions"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, "color_jitter=0.4 0.4 0.4: give four numbers"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "color_jitter=0.4 0.4 0.4 0.6: give four numbers"),
        ({"color_jitter": (-0.1, 0.4, 0.4, 0.1)}, "color_jitter=-0.1 0.4 0.4 0.1: give four numbers"),
        ({"color_jitter": (math.inf, 0.4, 0.4, 0.1)}, "color_jitter=inf 0.4 0.4 0.1: give four numbers"),
        ({"color_jitter": (math.nan, 0.4, 0.4, 0.1)}, "color_jitter=nan 0.4 0.4 0.1: give four numbers"),
        ({"augmentation": "none"}, "augmentation=none: give one of moco-v2, moco-v1, simclr, swav"),
        ({"crop_scale": ("a", "b")}, "crop_scale=a b: give two fractions"),
        ({"color_jitter": ("a", 0.4, 0.4, 0.1)}, "color_jitter=a 0.4 0.4 0.1: give four numbers"),
    ],
)
def test_an_augmentation_that_cannot_be_drawn_is_refused(given, message):
    settings = SeedSettings(**REQUIRED)
    for name, value in given.items():
        object.__setattr__(settings, name, value)  # types are checked in tests only
    with pytest.raises(InputError) as caught:
        settings.check()
    assert str(caught.value).startswith(message)
