"""Recipes: the settings of published runs, and of their variants for small images, by name.

Each recipe is a function that returns all settings in which such a run differs from others; its docstring says what it
is and where it comes from. Its name is the function's name with hyphens. Settings given beside a recipe win.
"""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from tinyseed.errors import InputError
from tinyseed.settings.base import flag

Settings = dict[str, Any]


def seed_imagenet() -> Settings:
    """SEED on ImageNet: 200 epochs, the teacher at hand; the paper's ResNet-18 learned from a MoCo-v2 ResNet-50.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 4.1 and table 1.
    """
    return {
        "epochs": 200,
        "batch_size": 256,
        "image_size": 224,
        "queue_size": 65_536,
        "student_temperature": 0.2,
        "teacher_temperature": 0.01,
        "projector": "mlp",
        "blur_probability": 0.5,
        "warmup_epochs": 5.0,
        **_sgd(lr=0.03, weight_decay=1e-4),
    }


def moco_v1_imagenet() -> Settings:
    """MoCo v1 on ImageNet, 200 epochs: ResNet-50 reaches 60.6 % with a linear classifier.

    Source: He et al., MoCo, CVPR 2020 (arXiv 1911.05722), sections 3.3 and 4; the defaults of its published code.
    """
    return {
        "epochs": 200,
        "batch_size": 256,
        "image_size": 224,
        "queue_size": 65_536,
        "temperature": 0.07,
        "encoder_momentum": 0.999,
        "dim": 128,
        "projector": "linear",
        "augmentation": "v1",
        "blur_probability": 0.0,
        "warmup_epochs": 0.0,
        **_sgd(lr=0.03, weight_decay=1e-4),
        "schedule": "step",
    }


def moco_v2_imagenet() -> Settings:
    """MoCo v2 on ImageNet, 200 epochs: ResNet-50 reaches 67.5 % with a linear classifier.

    Source: Chen et al., MoCo v2, 2020 (arXiv 2003.04297), table 1, and its published code's flags.
    """
    return {
        "epochs": 200,
        "batch_size": 256,
        "image_size": 224,
        "queue_size": 65_536,
        "temperature": 0.2,
        "encoder_momentum": 0.999,
        "dim": 128,
        "projector": "mlp",
        "augmentation": "v2",
        "blur_probability": 0.5,
        "warmup_epochs": 0.0,
        **_sgd(lr=0.03, weight_decay=1e-4),
    }


def moco_v2_imagenet_800ep() -> Settings:
    """MoCo v2 on ImageNet, 800 epochs: ResNet-50 reaches 71.1 % with a linear classifier.

    Source: Chen et al., MoCo v2, 2020 (arXiv 2003.04297), table 1.
    """
    return moco_v2_imagenet() | {"epochs": 800}


def simclr_imagenet() -> Settings:
    """SimCLR on ImageNet, 1,000 epochs of batch 4,096: ResNet-50 reaches 69.3 % with a linear classifier.

    Source: Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), section 2.1, appendix B and table 6; the command in its
    published code's README (temperature 0.1).
    """
    return {
        "epochs": 1000,
        "batch_size": 4096,
        "image_size": 224,
        "temperature": 0.1,
        "dim": 128,
        "projector": "mlp-bn",
        "color_strength": 1.0,
        "blur_probability": 0.5,
        "warmup_epochs": 10.0,
        **_lars(lr=0.3, scope="weights"),
    }


def simclr_imagenet_100ep() -> Settings:
    """SimCLR on ImageNet, the 100 epochs of its published code: ResNet-50 reaches about 64.5 %.

    Source: the README of the code of Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709).
    """
    return simclr_imagenet() | {"epochs": 100}


def swav_imagenet() -> Settings:
    """SwAV on ImageNet, 800 epochs of batch 4,096, crops 2×224 + 6×96: ResNet-50 reaches 75.3 %.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), and its published swav_800ep_pretrain.sh.
    Differs: the warm-up begins near 0, not at a sixteenth of the peak.
    """
    return {
        "epochs": 800,
        "batch_size": 4096,
        "image_size": 224,
        "large_crops": 2,
        "small_crops": 6,
        "small_crop_size": 96,
        "large_crop_scale": (0.14, 1.0),
        "small_crop_scale": (0.05, 0.14),
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "prototypes": 3000,
        "dim": 128,
        "projector": "mlp-bn",
        "freeze_prototypes_epochs": 1,
        "queue_size": 0,
        "color_strength": 1.0,
        "blur_probability": 0.5,
        "warmup_epochs": 10.0,
        **_lars(lr=0.3, scope="all", final_lr=0.0003),
    }


def swav_imagenet_400ep() -> Settings:
    """SwAV on ImageNet, 400 epochs of batch 4,096: ResNet-50 reaches 74.6 %.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), and its published swav_400ep_pretrain.sh.
    """
    return swav_imagenet() | {"epochs": 400}


def swav_imagenet_small() -> Settings:
    """SwAV on ImageNet with batch 256 and a queue, 200 epochs, for one machine: ResNet-50 reaches 72.7 %.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), and its published swav_200ep_bs256_pretrain.sh.
    """
    return swav_imagenet() | {
        "epochs": 200,
        "batch_size": 256,
        "queue_size": 3840,
        "queue_start_epoch": 15,
        "lr": 0.6,
        "final_lr": 0.0006,
        "warmup_epochs": 0.0,
    }


def seed_cifar() -> Settings:
    """SEED on images of 32 px: small stem, no blur, a queue of 4,096; no published run.

    Source: ours, after Fang et al., SEED, ICLR 2021 (arXiv 2101.04731).
    """
    return seed_imagenet() | _small() | {"queue_size": 4096}


def moco_v1_cifar() -> Settings:
    """MoCo v1 on images of 32 px; no published run.

    Source: ours, after He et al., MoCo, CVPR 2020 (arXiv 1911.05722).
    """
    return moco_v1_imagenet() | _small() | {"queue_size": 4096, "encoder_momentum": 0.99}


def moco_v2_cifar() -> Settings:
    """MoCo v2 on images of 32 px: small stem, no blur, a queue of 4,096, temperature 0.1.

    Source: the CIFAR-10 notebook beside MoCo's published code (arXiv 1911.05722).
    Differs: its head is linear; here it is v2's MLP.
    """
    small = {"queue_size": 4096, "encoder_momentum": 0.99, "temperature": 0.1, "weight_decay": 5e-4}
    return moco_v2_imagenet() | _small() | small


def simclr_cifar() -> Settings:
    """SimCLR on CIFAR-10: small stem, no blur, half the color distortion, temperature 0.5, batch 512, 1,000 epochs.

    Source: the command in the README of the code of Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709); appendix B.9.
    """
    changes = {"epochs": 1000, "temperature": 0.5, "color_strength": 0.5, "lr": 1.0}
    return simclr_imagenet() | _small() | changes


def swav_cifar() -> Settings:
    """SwAV on images of 32 px: 2×32 + 4×16, 100 prototypes, no blur, half the color distortion; no published run.

    Source: ours, after Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882).
    """
    crops = {"small_crops": 4, "small_crop_size": 16, "large_crop_scale": (0.3, 1.0)}
    crops |= {"small_crop_scale": (0.1, 0.3)}
    return swav_imagenet() | _small() | crops | {"prototypes": 100, "color_strength": 0.5}


def _sgd(*, lr: float, weight_decay: float) -> Settings:
    return {
        "optimizer": "sgd",
        "lr": lr,
        "final_lr": 0.0,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": weight_decay,
    }


def _lars(*, lr: float, scope: str, final_lr: float = 0.0) -> Settings:
    return _sgd(lr=lr, weight_decay=1e-6) | {
        "optimizer": "lars",
        "lars_scope": scope,
        "final_lr": final_lr,
    }


def _small() -> Settings:
    return {
        "epochs": 200,
        "batch_size": 512,
        "image_size": 32,
        "small_stem": True,
        "blur_probability": 0.0,
    }


@dataclass(frozen=True)
class Recipe:
    """A function that returns settings, and the command that they are for."""

    command: str
    settings: Callable[[], Settings]

    @property
    def name(self) -> str:
        """The name as it is typed."""
        return self.settings.__name__.replace("_", "-")

    @property
    def about(self) -> str:
        """What it is, in one line."""
        return _docstring(self.settings).partition("\n")[0]

    @property
    def notes(self) -> str:
        """Where it comes from, and what differs."""
        return _docstring(self.settings).partition("\n\n")[2]


def _docstring(function: Callable[[], Settings]) -> str:
    """From the source: python -OO keeps none."""
    (definition,) = ast.parse(inspect.getsource(function)).body
    return ast.get_docstring(cast(ast.FunctionDef, definition)) or ""


_RECIPES = (
    Recipe("distill", seed_imagenet),
    Recipe("distill", seed_cifar),
    Recipe("pretrain moco-v1", moco_v1_imagenet),
    Recipe("pretrain moco-v1", moco_v1_cifar),
    Recipe("pretrain moco-v2", moco_v2_imagenet),
    Recipe("pretrain moco-v2", moco_v2_imagenet_800ep),
    Recipe("pretrain moco-v2", moco_v2_cifar),
    Recipe("pretrain simclr", simclr_imagenet),
    Recipe("pretrain simclr", simclr_imagenet_100ep),
    Recipe("pretrain simclr", simclr_cifar),
    Recipe("pretrain swav", swav_imagenet),
    Recipe("pretrain swav", swav_imagenet_400ep),
    Recipe("pretrain swav", swav_imagenet_small),
    Recipe("pretrain swav", swav_cifar),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


def settings_of(name: str, command: str) -> Settings:
    """A recipe's settings, for a run of this command (`distill`, `pretrain simclr`).

    Raises:
        InputError: there is no such recipe, or it is for another command.
    """
    known = ", ".join(name for name, recipe in RECIPES.items() if recipe.command == command)
    if name not in RECIPES:
        raise InputError(name, f"unknown recipe; give one of {known}", argument="recipe")
    recipe = RECIPES[name]
    if recipe.command != command:
        remedy = f"is for tinyseed {recipe.command}; here give one of {known}"
        raise InputError(name, remedy, argument="recipe")
    return recipe.settings()


def listing() -> str:
    """All recipes: name, command, one line about it and its source."""
    blocks = [
        f"{name}  (tinyseed {recipe.command})\n  {recipe.about}\n"
        + "\n".join(f"  {line.strip()}" for line in recipe.notes.splitlines())
        for name, recipe in RECIPES.items()
    ]
    return "\n\n".join(blocks)


def sheet(name: str) -> str:
    """A recipe for the terminal: a command line, what it is, and each setting as a flag.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(name, f"unknown recipe; give one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    settings = recipe.settings()
    networks = "--teacher runs/teacher --student" if recipe.command == "distill" else "--backbone"
    network = "resnet18" if recipe.command == "distill" or settings["image_size"] < 64 else "resnet50"
    command = (
        f"tinyseed {recipe.command} --recipe {name} --data photos/ {networks} {network} --out runs/{name}"
    )
    flags = "\n".join(f"  {_as_flag(setting, value)}" for setting, value in settings.items())
    return f"{command}\n\n{recipe.about}\n\n{recipe.notes}\n\nsettings:\n{flags}"


def _as_flag(setting: str, value: object) -> str:
    if value is True:
        return flag(setting)
    words = value if isinstance(value, tuple) else (value,)
    return f"{flag(setting)} {' '.join(map(str, words))}"
