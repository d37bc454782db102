"""Recipes: the settings of published runs and evaluations, and of variants for small images, by name.

Each recipe is a function that returns all settings in which such a run differs from others; its docstring says what it
is and where it comes from. Its name is the function's name with hyphens. Settings given beside a recipe win.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tinyseed.errors import InputError
from tinyseed.settings.base import flag

Settings = dict[str, Any]


def seed_imagenet() -> Settings:
    """SEED on ImageNet: 200 epochs, the teacher at hand; the paper's ResNet-18 learned from a MoCo-v2 ResNet-50.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 4.1 and table 1.
    Differs: the learning rate changes with each step, in the published code with each epoch (see seed-imagenet-code).
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


def seed_imagenet_code() -> Settings:
    """SEED on ImageNet as the published code sets it, not the paper: teacher's temperature, learning rate by epochs.

    Source: main.py, tools/opts.py and tools/utils.py of the code of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731).
    Differs: the queue begins empty, not with random rows.
    """
    return seed_imagenet() | {"teacher_temperature": 1e-4, "schedule": "cosine-epoch"}


def seed_imagenet_small_patches() -> Settings:
    """SEED on ImageNet with six small crops beside the view, as the published code learns from SwAV teachers.

    Source: main_small-patch.py, seed/small_patch_builder.py, tools/opts.py and tools/utils.py of the code of Fang et
    al., SEED, ICLR 2021 (arXiv 2101.04731): view from 0.14 of the area on, small crops of 96 px from 0.05 to 0.14, both
    with MoCo v2's jitter; a queue for each; both losses with the same weight; teacher's temperature 1e-4.
    Differs: the queues begin empty, not with random rows; networks compute in bfloat16 or float32, not in float16.
    """
    return seed_imagenet_code() | {
        "crop_scale": (0.14, 1.0),
        "large_crops": 1,
        "small_crops": 6,
        "small_crop_size": 96,
        "small_crop_scale": (0.05, 0.14),
        "small_crop_weight": 1.0,
    }


def seed_imagenet_swav() -> Settings:
    """SEED on ImageNet from a SwAV teacher, without small crops: views cover from 0.14 of the area on, not 0.2.

    Source: `swav_aug` in tools/utils.py of the code of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731). Its jitter is
    MoCo v2's, half of what SwAV itself has (`augmentation` swav).
    Differs: the published runs from SwAV teachers have six small crops beside the view (seed-imagenet-small-patches).
    """
    return seed_imagenet() | {"crop_scale": (0.14, 1.0)}


def seed_imagenet_simclr() -> Settings:
    """SEED on ImageNet from a SimCLR or MoCo-v1 teacher: the augmentation of MoCo v1, without blur.

    Source: `simclr_aug` and `mocov1_aug` in tools/utils.py of the code of Fang et al., SEED, ICLR 2021 (arXiv
    2101.04731), which are the same. SimCLR's own is much stronger (`augmentation` simclr).
    Differs: views are converted to grayscale after the jitter, not before.
    """
    return seed_imagenet() | {"augmentation": "moco-v1", "blur_probability": 0.0}


def simreg() -> Settings:
    """SimReg on ImageNet, 130 epochs: a head of four layers, the teacher's backbone features as its target.

    Source: Navaneet et al., SimReg, BMVC 2021 (arXiv 2201.05131), and run.sh and main.py of its published code.
    Differs: all hidden layers are as wide as the backbone's features, with batch norm and ReLU behind each; in the
    published code the first and the third are twice as wide, and the second has neither. A fifth of the views is
    converted to grayscale; there they are cropped and mirrored only.
    """
    return {
        "epochs": 130,
        "batch_size": 256,
        "image_size": 224,
        "loss": "l2",
        "teacher_output": "backbone",
        "projector": "mlp-bn",
        "projector_layers": 4,
        "color_jitter": (0.0, 0.0, 0.0, 0.0),
        "blur_probability": 0.0,
        "warmup_epochs": 0.0,
        **_sgd(lr=0.05, weight_decay=1e-4),
        "schedule": "cosine-epoch",
    }


def compress_imagenet() -> Settings:
    """CompRess-2q on ImageNet, 130 epochs: the student's features against a queue of its own, of 128,000 images.

    Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020 (arXiv 2010.14713), and train_student.py of its published
    code.
    Differs: the student's queue is filled without a momentum encoder. The learning rate is divided by ten at 60 % and
    80 % of the run, there by five after epochs 90 and 120. A fifth of the views is converted to grayscale; there they
    are cropped and mirrored only.
    """
    return {
        "epochs": 130,
        "batch_size": 256,
        "image_size": 224,
        "queue_size": 128_000,
        "student_temperature": 0.04,
        "teacher_temperature": 0.04,
        "teacher_output": "backbone",
        "projector": "none",
        "crop_scale": (0.08, 1.0),
        "color_jitter": (0.0, 0.0, 0.0, 0.0),
        "blur_probability": 0.0,
        "warmup_epochs": 0.0,
        **_sgd(lr=0.01, weight_decay=1e-4),
        "schedule": "step",
    }


def seed_knn() -> Settings:
    """The SEED paper's k-NN: the most frequent class among the 10 nearest neighbors of the head's embedding.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 4.2 (K = 10, the 128-d vector after the MLP).
    """
    return {"k": (10,), "weighting": "majority", "model_output": "head"}


def instdisc_knn() -> Settings:
    """Instance discrimination's weighted k-NN: 200 neighbors of the head's embedding, temperature 0.07.

    Source: Wu et al., InstDisc, CVPR 2018 (arXiv 1805.01978), section 3.4.
    """
    return {"k": (200,), "weighting": "weighted", "temperature": 0.07, "model_output": "head"}


def dino_knn() -> Settings:
    """DINO's weighted k-NN: 10, 20, 100 and 200 neighbors of the backbone's features, temperature 0.07.

    Source: eval_knn.py of the code of Caron et al., DINO, ICCV 2021 (arXiv 2104.14294).
    Differs: images are resized as the model was trained, DINO's code always takes bicubic interpolation.
    """
    return {"k": (10, 20, 100, 200), "weighting": "weighted", "temperature": 0.07, "model_output": "backbone"}


def seed_linear() -> Settings:
    """The SEED paper's linear probe (MoCo's, too): SGD on random crops, 100 epochs, learning rate 30.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 4.2, and main_lincls.py of its code; He et al.,
    MoCo, CVPR 2020 (arXiv 1911.05722), section 4.1, and main_lincls.py of its code.
    Differs: the last epoch is measured, the published code reports the best one on the test images.
    """
    return {
        "protocol": "moco",
        "epochs": 100,
        "batch_size": 256,
        "lr": 30.0,
        "schedule": "step",
        "weight_decay": 0.0,
    }


def seed_linear_mobile() -> Settings:
    """The SEED paper's linear probe for MobileNet and EfficientNet students: learning rate 3.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 4.2.
    Differs: the published code's README has a learning rate of 30 for EfficientNet, too, with a batch of 32.
    """
    return seed_linear() | {"lr": 3.0}


def swav_linear() -> Settings:
    """SwAV's linear probe: SGD on random crops, 100 epochs of a cosine from 0.3, weight decay 1e-6.

    Source: eval_linear.py of the code of Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), on 8 GPUs.
    Differs: the last epoch is measured, the published code reports the best one on the test images.
    """
    changes = {"lr": 0.3, "schedule": "cosine-epoch", "weight_decay": 1e-6}
    return seed_linear() | changes


def swav_semi_1_percent() -> Settings:
    """SwAV's fine-tuning on 1 % of the labels: 20 epochs, learning rates 0.02 (backbone) and 5 (head).

    Source: eval_semisup.py and README of the code of Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882).
    Differs: the labels are drawn anew; give `subset` 1percent.txt for the published list. The last epoch is measured.
    """
    return {
        "fraction": (0.01,),
        "epochs": 20,
        "batch_size": 256,
        "lr": 0.02,
        "lr_head": 5.0,
        "head_init": "uniform",
    }


def swav_semi_10_percent() -> Settings:
    """SwAV's fine-tuning on 10 % of the labels: 20 epochs, learning rates 0.01 (backbone) and 0.2 (head).

    Source: eval_semisup.py and README of the code of Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882).
    Differs: the labels are drawn anew; give `subset` 10percent.txt for the published list. The last epoch is measured.
    """
    return swav_semi_1_percent() | {"fraction": (0.1,), "lr": 0.01, "lr_head": 0.2}


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
    Differs: the learning rate changes with each step, in the published code with each epoch (`schedule` cosine-epoch).
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
    Differs: each step of the warm-up has the next one's learning rate of the published code, whose first is 0.
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

    Source: the README of the code of Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709). Its learning rate of 0.075
    times the square root of the batch, 4,096, is 0.3 for a batch of 256 with linear scaling.
    """
    return simclr_imagenet() | {"epochs": 100, "weight_decay": 1e-4}


def swav_imagenet() -> Settings:
    """SwAV on ImageNet, 800 epochs of batch 4,096, crops 2×224 + 6×96: ResNet-50 reaches 75.3 %.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), and its published swav_800ep_pretrain.sh.
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
        "warmup_lr": 0.01875,
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
    settings = swav_imagenet()
    del settings["warmup_lr"]  # there is no warm-up
    return settings | {
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
    changes = {"epochs": 1000, "temperature": 0.5, "color_strength": 0.5, "lr": 1.0, "weight_decay": 1e-4}
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
    Recipe("distill", seed_imagenet_code),
    Recipe("distill", seed_imagenet_small_patches),
    Recipe("distill", seed_imagenet_swav),
    Recipe("distill", seed_imagenet_simclr),
    Recipe("distill", seed_cifar),
    Recipe("distill --method regress", simreg),
    Recipe("distill --method compress", compress_imagenet),
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
    Recipe("evaluate knn", seed_knn),
    Recipe("evaluate knn", instdisc_knn),
    Recipe("evaluate knn", dino_knn),
    Recipe("evaluate linear", seed_linear),
    Recipe("evaluate linear", seed_linear_mobile),
    Recipe("evaluate linear", swav_linear),
    Recipe("evaluate semi", swav_semi_1_percent),
    Recipe("evaluate semi", swav_semi_10_percent),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


def settings_of(name: str, command: str) -> Settings:
    """A recipe's settings, for a run of this command (`distill`, `pretrain simclr`, `evaluate knn`).

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


def recipe_for(name: str | None, commands: Sequence[str]) -> Settings:
    """The settings of a recipe; none where none is named.

    Args:
        name: of the recipe.
        commands: of the run; several methods of `tinyseed distill` have several.

    Raises:
        InputError: as `settings_of`, or there are several commands.
    """
    if name is None:
        return {}
    if len(commands) > 1:
        remedy = "is for one method; give one `method`, or the settings themselves"
        raise InputError(name, remedy, argument="recipe")
    return settings_of(name, commands[0])


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
    command = f"tinyseed {recipe.command} --recipe {name} {_others(recipe, settings)}"
    flags = "\n".join(f"  {_as_flag(setting, value)}" for setting, value in settings.items())
    return f"{command}\n\n{recipe.about}\n\n{recipe.notes}\n\nsettings:\n{flags}"


def _others(recipe: Recipe, settings: Settings) -> str:
    """The flags that a recipe leaves to the user, with examples."""
    if recipe.command.startswith("evaluate "):
        return "--model runs/small --train-data train/ --test-data test/"
    if recipe.command.startswith("distill"):
        networks = "--teacher runs/teacher --student resnet18"
    else:
        networks = f"--backbone {'resnet18' if settings['image_size'] < 64 else 'resnet50'}"
    return f"--data photos/ {networks} --out runs/{recipe.name}"


def _as_flag(setting: str, value: object) -> str:
    if value is True:
        return flag(setting)
    words = value if isinstance(value, tuple) else (value,)
    return f"{flag(setting)} {' '.join(map(str, words))}"
