"""The teacher that comes with the package is whole, small, and knows clothes."""

import json

import pytest
import torch
from safetensors import safe_open

from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.checkpoints.load import describe_model, load_model, load_teacher
from tinyseed.data.base import Subset
from tinyseed.data.sources import open_source
from tinyseed.evaluation.features import embed_source
from tinyseed.evaluation.neighbors import knn
from tinyseed.models.spec import ModelSpec

NAME = "tinyseed/clothing-resnet18"


def test_it_loads_by_name_with_its_head_and_contract():
    teacher = load_teacher(NAME)
    assert (teacher.dim, teacher.width, teacher.input.size, teacher.input.interpolation) == (
        128,
        512,
        64,
        "bilinear",
    )
    rows = teacher(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_it_can_be_asked_what_it_is():
    described = describe_model(NAME)
    assert (described.architecture, described.head, described.dim) == ("resnet18", "mlp", 128)


def test_it_is_small_and_stores_what_needs_no_range_in_half_precision():
    assert sum(file.stat().st_size for file in CLOTHING_TEACHER.iterdir()) <= 24_000_000
    with safe_open(CLOTHING_TEACHER / "encoder.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds["conv1.weight"] == torch.float16
    assert kinds["bn1.running_var"] == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in load_model(NAME).parameters())


def test_its_lineage_says_how_it_was_trained():
    lineage = json.loads((CLOTHING_TEACHER / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["command"][:3] == ["tinyseed", "pretrain", "moco-v2"]
    images = len(open_source([str(clothing("train"))]))
    assert lineage["data"]["trained_on"] + lineage["data"]["held_out_images"] == images
    curve = [line["knn_top1"] for line in lineage["curve"]]
    assert max(curve) > curve[0] + 10


@pytest.mark.slow
def test_it_tells_test_photos_apart_far_better_than_an_untrained_network():
    train = open_source([str(clothing("train"))])
    test = open_source([str(clothing("test"))])
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:1500].sort().values.numpy()
    top1 = {}
    for name in (NAME, "random:resnet18"):
        encoder = load_model(ModelSpec(name, image_size=64))
        bank, tested = embed_source(encoder, Subset(train, some)), embed_source(encoder, test)
        (result,) = knn(bank.features, bank.labels, tested.features, tested.labels, k=(10,))
        top1[name] = 100 * result.top1
    assert top1[NAME] > top1["random:resnet18"] + 8
