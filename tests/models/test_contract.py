"""Input contracts are the libraries' own, and a teacher's image size follows them."""

import pytest
import torch

from tinyseed.checkpoints.load import load_model, load_teacher
from tinyseed.errors import InputError
from tinyseed.models.contract import InputContract
from tinyseed.models.libraries import create_on_meta
from tinyseed.models.spec import ModelSpec


def test_a_size_is_raised_to_what_the_network_takes():
    assert InputContract(multiple=14).fitting(224) == 224
    assert InputContract(multiple=14).fitting(225) == 238
    assert InputContract(size=160, fixed=True).fitting(64) == 160
    assert InputContract().fitting(63) == 63


@pytest.mark.parametrize(
    ("library", "name", "wanted"),
    [
        ("timm", "vit_small_patch14_dinov2", (518, "bicubic", 14, False)),
        ("timm", "vit_base_patch16_siglip_224", (224, "bicubic", 16, False)),
        ("timm", "resnet18", (224, "bicubic", 1, False)),
        ("timm", "beit_base_patch16_224", (224, "bicubic", 1, True)),
        ("torchvision", "resnet18", (224, "bilinear", 1, False)),
        ("torchvision", "regnet_x_400mf", (224, "bilinear", 1, False)),
        ("torchvision", "vit_b_16", (224, "bilinear", 16, True)),
    ],
)
def test_contracts_are_the_librarys(library, name, wanted):
    contract = create_on_meta(library, name).contract
    assert (contract.size, contract.interpolation, contract.multiple, contract.fixed) == wanted
    assert contract.channels == 3


def test_a_teacher_takes_the_next_multiple_of_its_patch_and_a_model_only_its_own():
    teacher = load_teacher("test_vit", weights="random", image_size=40)
    assert teacher.input.size == 48
    assert teacher(torch.rand(2, 3, 48, 48)).shape == (2, teacher.dim)
    with pytest.raises(InputError, match="40 px"):
        load_model(ModelSpec("test_vit", "random", image_size=40))
