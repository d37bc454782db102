"""Settings and report of `evaluate detect`. Imports levels.py for its types, and errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyseed.errors import InputError
from tinyseed.evaluation.detect.levels import Norm
from tinyseed.evaluation.detect.score import Precision

Format = Literal["voc", "coco"]

DEFAULT_SPLITS: dict[Format, tuple[str, str]] = {
    "voc": ("trainval", "test"),
    "coco": ("train2017", "val2017"),
}

RANDOM_TWIN = "random"


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """`tinyseed evaluate detect`: boxes (and masks) to learn, a model to start from, and others beside it."""

    model: str
    """A run folder, an exported file, a backbone's name (its library's weights), or random:NAME."""
    train_data: tuple[str, ...] = ()
    """Folder in the layout of --format; for VOC07+12 both, or the folder that holds them."""
    format: Format | None = None
    """The data's layout: VOC (Annotations, JPEGImages, ImageSets) or COCO (annotations/instances_SPLIT.json)."""
    test_data: tuple[str, ...] = ()
    """Folder of the test split; by default --train-data."""
    train_split: str | None = None
    """Split to train on; by default trainval (VOC), train2017 (COCO)."""
    test_split: str | None = None
    """Split to test on; by default test (VOC), val2017 (COCO)."""
    schedule: int | Literal["1x", "2x"] = "1x"
    """1x: 18,000 steps of 16 images on VOC, 90,000 on COCO; 2x: twice that; or the number of steps."""
    norm: Norm = "trained"
    """Batch norms of the trunk: trained further, or frozen (better with few images a step)."""
    compare: tuple[str, ...] = ()
    """More start points for the same training: random (the same network, untrained), or models as for --model."""
    masks: bool = False
    """Train and score masks, too (Mask R-CNN instead of Faster R-CNN); COCO only."""
    image_size: tuple[int, ...] = (800,)
    """Short side of the images in pixels; of several one is drawn for each training image, the last is the test's."""
    batch_size: int = 16
    """Images a step."""
    lr: float = 0.02
    """Learning rate for 16 images a step; scaled to the batch."""
    limit: int | None = None
    """Use at most so many images of each split, for a quick look."""
    seed: int = 0
    """Of the heads' weights, the order and the flips; the same for all start points."""
    workers: int | Literal["auto"] = "auto"
    """Threads that decode images."""
    out: Path | None = None
    """Folder for evaluate-detect.json and .md and the checkpoints; by default the run folder, where --model is one."""
    export_detectron2: Path | None = None
    """Only write the trunk, a plain ResNet, to this file with Detectron2's names (.pkl); no data is needed."""


@dataclass(frozen=True)
class DetectResult:
    """One start point's figures, in per cent.

    Attributes:
        start: as it was named; "random" is the model's untrained twin.
        backbone: what it is.
        box, mask: average precision; mask is None without --masks.
        loss_first, loss_last: mean loss of the first and the last twentieth of the steps.
        seconds: of training.
    """

    start: str
    backbone: str
    box: Precision
    mask: Precision | None
    loss_first: float
    loss_last: float
    seconds: float


@dataclass(frozen=True)
class DetectReport:
    """What evaluate-detect.json holds; `notes` tells what was left out, and what to beware of."""

    model: str
    format: Format
    train_images: int
    train_boxes: int
    test_images: int
    test_boxes: int
    unreadable_images: int
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    schedule: str
    steps: int
    batch_size: int
    lr: float
    norm: Norm
    image_size: tuple[int, ...]
    masks: bool
    seed: int
    results: tuple[DetectResult, ...]


def check(config: DetectConfig) -> None:
    """Refuse what no training could use.

    Raises:
        InputError: the first setting that is wrong.
    """
    _check_data(config)
    least = {
        "--batch-size": (config.batch_size, 1),
        "--image-size": (min(config.image_size, default=0), 32),
        "--schedule": (config.schedule, 1),
        "--limit": (config.limit, 1),
        "--seed": (config.seed, 0),
        "--workers": (config.workers, 0),
    }
    for flag, (value, bound) in least.items():
        if isinstance(value, int) and value < bound:
            raise InputError(flag, value, f"give a number of at least {bound}")
    if not 0 < config.lr < float("inf"):
        raise InputError("--lr", config.lr, "give a number above 0")


def _check_data(config: DetectConfig) -> None:
    if not config.train_data:
        raise InputError("--train-data", "missing", "give the folder with the annotated images")
    if config.format is None:
        raise InputError("--format", "missing", "give voc or coco")
    if config.format == "coco" and max(len(config.train_data), len(config.test_data)) > 1:
        raise InputError("--train-data", " ".join(config.train_data), "give one folder for COCO's layout")
    if config.format == "voc" and config.masks:
        raise InputError(
            "--masks", "given", "VOC's boxes come without masks; give --format coco, or leave it out"
        )


def out_folder(config: DetectConfig) -> Path:
    """Where figures and checkpoints go.

    Raises:
        InputError: none was given, and the model is no run folder.
    """
    if config.out is not None:
        return config.out
    if Path(config.model).expanduser().is_dir():
        return Path(config.model).expanduser()
    raise InputError(
        "--out", "missing", "the model is no run folder; give a folder for figures and checkpoints"
    )
