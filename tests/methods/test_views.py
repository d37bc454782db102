"""Views of a batch as networks see them, and the teacher's targets."""

from dataclasses import replace

import pytest
import torch

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.render import normalize, resized
from tinyseed.methods.views import FreshTargets, Views
from tinyseed.models.contract import IMAGENET
from tinyseed.models.teacher import Teacher


class Counting(Teacher):
    """Counts its calls."""

    def __init__(self) -> None:
        self.input, self.calls = replace(IMAGENET, size=16), 0

    def __call__(self, images):
        self.calls += 1
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32)


def test_a_network_sees_a_view_at_its_size_and_normalized(images):
    small = replace(IMAGENET, size=16, interpolation="bicubic", mean=(0.1, 0.2, 0.3))
    expected = normalize(resized(images, 16, "bicubic"), small.mean, small.std)
    torch.testing.assert_close(Views([images]).seen(0, small), expected, rtol=0, atol=0)


def test_networks_that_expect_the_same_share_one_tensor(images):
    views = Views([images])
    own, same = replace(IMAGENET, size=32), replace(IMAGENET, size=32, interpolation="bicubic", multiple=8)
    assert views.seen(0, own) is views.seen(0, same)  # nothing is resized, so interpolation does not matter
    assert views.seen(0, own) is not views.seen(0, replace(own, size=16))
    assert views.seen(0, own) is not views.seen(0, own, (2, 1, 0))


def test_bands_are_chosen_before_normalization(images):
    torch.testing.assert_close(
        Views([images]).seen(0, IMAGENET, (2, 2, 0)), Views([images[:, [2, 2, 0]]]).seen(0, IMAGENET)
    )


def test_a_plain_tuple_becomes_views_without_an_address(images):
    views = Views.of((images,))
    assert views[0] is images
    assert views.indices is None
    assert Views.of(views) is views


def test_the_teacher_sees_a_view_once_whoever_asks(images):
    targets = FreshTargets(Counting())
    views = Views([images, images.flip(0)], torch.tensor([3, 4]), epoch=1)
    first = targets(views)
    assert targets(views) is first
    assert not torch.equal(targets(views, 1), first)
    assert targets.teacher.calls == 2
    targets(Views([images]))
    assert targets.teacher.calls == 3


def test_outputs_that_are_asked_for_together_come_from_one_pass_and_are_kept_apart(images):
    targets = FreshTargets(load_teacher("test_resnet", weights="random", image_size=64))
    passes: list[tuple[str, ...]] = []
    ask = targets.teacher.outputs
    targets.teacher.outputs = lambda seen, wanted: (passes.append(tuple(wanted)), ask(seen, wanted))[1]
    views = Views([torch.nn.functional.interpolate(images, 64)])
    alone = targets(views)
    given = targets.together(views, 0, ("rows", "patches"))
    assert targets.together(views, 0, ("rows", "patches"))["patches"] is given["patches"]
    assert passes == [("rows", "patches")]
    assert targets(views) is alone
    assert given["rows"] is not alone
    torch.testing.assert_close(given["rows"], alone, rtol=1e-4, atol=1e-5)
