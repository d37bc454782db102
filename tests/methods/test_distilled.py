"""Each method with a teacher, one step: its formula in NumPy, and what a step may change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.errors import InputError
from tinyseed.methods.base import Setup
from tinyseed.methods.catalog import distill_methods
from tinyseed.methods.compress import Compress
from tinyseed.methods.kmeans import KMeans, KMeansSettings
from tinyseed.models.teacher import Teacher

METHODS = distill_methods()
IMAGES = 200

OWN = {
    "seed": {"queue_size": 12},
    "regress": {},
    "contrastive": {"queue_size": 12},
    "compress": {"queue_size": 12},
    "seed-moco": {"queue_size": 12},
    "online-clustering": {"queue_size": 12, "prototypes": 5},
    "kmeans": {"clusters": 4},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("test_resnet", weights="random", seed=1, image_size=32)


def build(name: str, teacher: Teacher, **changes):
    given = {"data": (), "out": Path(), "teacher": "t", "student": "resnet10t", "image_size": 32}
    settings = METHODS[name].settings(**(given | OWN[name] | changes)).settled(IMAGES)
    settings.check()
    method = METHODS[name].build(Setup(settings, teacher))
    method.module.eval()
    method.prepare(lambda at_most: unit(min(at_most, 40), teacher.dim, 5))
    if name not in ("regress", "kmeans"):
        method.queue.push(unit(7, teacher.dim, 3))
    if name == "compress" and method.student_queue is not None:
        method.student_queue.push(unit(7, method.encoder.dim, 4))
    if name == "seed-moco":
        method.contrast.key_encoder.eval()
        method.contrast.queue.push(unit(7, 128, 4))
    return method


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def contrastive(method, z, t):
    rows = method.queue.rows().double().numpy()
    scores = np.concatenate([(z * t).sum(1, keepdims=True), z @ rows.T], 1) / 0.2
    return -log_softmax(scores)[:, 0].mean()


def binary(method, z, t):
    rows = method.queue.rows().double().numpy()
    prior = len(rows) / IMAGES
    own, others = np.exp((z * t).sum(1) / 0.5), np.exp(z @ rows.T / 0.5)
    return -(np.log(own / (own + prior)) + np.log(prior / (others + prior)).sum(1)).mean()


def compress(method, z, t):
    queue = method.student_queue or method.queue
    log_p, log_q = (
        log_softmax(given @ of.rows().double().numpy().T / 0.04)
        for given, of in ((t, method.queue), (z, queue))
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(1).mean()


def online_clustering(method, z, t):
    prototypes = method.network.prototypes.weight.detach().double().numpy()
    matrix = np.exp(np.concatenate([t, method.queue.rows().double().numpy()]) @ prototypes.T / 0.05)
    for _ in range(3):
        matrix /= matrix.sum(0)
        matrix /= matrix.sum(1, keepdims=True)
    return -(matrix[: len(t)] * log_softmax(z @ prototypes.T / 0.1)).sum(1).mean()


def kmeans(method, scores, t):
    means = method.means.rows.double().numpy()
    labels = ((t[:, None] - means[None]) ** 2).sum(2).argmin(1)
    return -log_softmax(scores)[np.arange(len(t)), labels].mean()


FORMULAS = [
    ("regress", {}, lambda _, z, t: ((z - t) ** 2).sum(1).mean()),
    ("regress", {"loss": "cosine"}, lambda _, z, t: (1 - (z * t).sum(1)).mean()),
    ("contrastive", {}, contrastive),
    ("contrastive", {"loss": "nce", "temperature": 0.5}, binary),
    ("compress", {}, compress),
    ("compress", {"student_queue": False, "projector": "linear"}, compress),
    ("online-clustering", {}, online_clustering),
    ("kmeans", {}, kmeans),
]


@pytest.mark.parametrize(
    ("name", "own", "formula"), FORMULAS, ids=[" ".join([name, *own]) for name, own, _ in FORMULAS]
)
def test_a_step_is_its_formula_on_one_view_of_both_networks(teacher, name, own, formula):
    method = build(name, teacher, **own)
    output = method.step(method.module, (images(),), step=0)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    given = method.module((images() - mean) / std)
    given = given[0] if isinstance(given, tuple) else given
    seen = (images() - torch.tensor(teacher.mean).view(3, 1, 1)) / torch.tensor(teacher.std).view(3, 1, 1)
    z, t = (rows.detach().double().numpy() for rows in (given, teacher(seen)))
    assert output.loss.item() == pytest.approx(formula(method, z, t), rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_student_learns_and_state_changes_only_in_advance(teacher, name):
    method = build(name, teacher)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    output = method.step(method.module, (images(),) * len(method.views(32)), step=0)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert not any("teacher" in key for key in (*method.module.state_dict(), *before))
    method.advance([output])
    for queue in method.teacher_queues():
        assert len(queue) == 12
        assert torch.equal(queue.rows()[7:], teacher_rows(teacher))
    other = build(name, teacher, seed=1)
    other.load_state_dict({key: value.clone() for key, value in method.state_dict().items()})
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in other.state_dict().items())


def teacher_rows(teacher: Teacher) -> torch.Tensor:
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (teacher.mean, teacher.std))
    return teacher((images() - mean) / std)


def test_both_queues_hold_the_same_images_in_the_same_order(teacher):
    method = build("compress", teacher)
    assert isinstance(method, Compress)
    student = method.module(
        (images() - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    )
    method.advance([method.step(method.module, (images(),), step=0)])
    torch.testing.assert_close(method.student_queue.rows()[7:], student.detach())
    assert method.student_queue.dim == 512
    assert method.queue.dim == teacher.dim


def test_one_queue_needs_the_teachers_dimension(teacher):
    with pytest.raises(InputError, match="projector=none: the student has 512 dimensions"):
        build("compress", teacher, student_queue=False)


def test_clusters_are_found_on_the_teachers_rows_and_depend_on_the_seed(teacher):
    first, again, other = (build("kmeans", teacher, seed=seed) for seed in (0, 0, 1))
    assert isinstance(first, KMeans)
    assert torch.equal(first.means.rows, again.means.rows)
    assert not torch.equal(first.means.rows, other.means.rows)
    rows = unit(40, teacher.dim, 5)
    closest = torch.cdist(rows, first.means.rows).argmin(1)
    for cluster in range(4):
        torch.testing.assert_close(first.means.rows[cluster], rows[closest == cluster].mean(0))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"clusters": 60}, "clusters=60: give at most 54, the training images"),
        (
            {"clusters": 20, "cluster_images": 10},
            "cluster_images=10: give at least as many as `clusters`, 20",
        ),
    ],
)
def test_more_clusters_than_images_are_refused(given, told):
    settings = KMeansSettings(data=(), out=Path(), teacher="t", student="s", **given)
    with pytest.raises(InputError) as caught:
        settings.settled(54)
    assert str(caught.value) == told


@pytest.mark.parametrize(("images_there", "clusters"), [(54, 5), (12, 2), (1_281_167, 1000)])
def test_the_number_of_clusters_follows_the_images(images_there, clusters):
    settled = KMeansSettings(data=(), out=Path(), teacher="t", student="s").settled(images_there)
    assert (settled.clusters, settled.cluster_images) == (clusters, 256 * clusters)


def test_a_queue_of_online_clustering_stays_small():
    def size(name: str) -> int:
        kind = METHODS[name].settings
        return kind(data=(), out=Path(), teacher="t", student="s").settled(1_281_167).queue_size

    assert (size("online-clustering"), size("contrastive")) == (4096, 65_536)
