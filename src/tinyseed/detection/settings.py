"""The settings of `evaluate detect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tinyseed.errors import MISSING, InputError
from tinyseed.settings.base import BATCH_SIZES, COUNTS, IMAGE_SIDES, LARGEST, Range
from tinyseed.settings.evaluation import EvaluationSettings

Format = Literal["voc", "coco"]

DEFAULT_SPLITS: dict[Format, tuple[str, str]] = {
    "voc": ("trainval", "test"),
    "coco": ("train2017", "val2017"),
}

RANDOM_INIT = "random"
"""The name of a start point: the network of `model` with random weights."""


@dataclass(frozen=True, kw_only=True)
class DetectSettings(EvaluationSettings):
    """Settings of `tinyseed evaluate detect`."""

    RANGES: ClassVar = {
        "image_size": Range(32, IMAGE_SIDES.high),
        "batch_size": BATCH_SIZES,
        "lr": Range(0, LARGEST, above=True),
    }

    model: str
    """Model to start from: a run folder, a checkpoint file or its URL, a backbone's name, or random:NAME."""
    train_data: tuple[str, ...] = ()
    """Folder with the annotated images; for VOC07+12 both folders, or the folder that holds them."""
    format: Format | None = None
    """Layout of the data: VOC (Annotations, JPEGImages, ImageSets) or COCO (annotations/instances_SPLIT.json)."""
    test_data: tuple[str, ...] = ()
    """Folder with the test split; by default the same folder."""
    train_split: str | None = None
    """Split to train on; by default trainval (VOC) or train2017 (COCO)."""
    test_split: str | None = None
    """Split to test on; by default test (VOC) or val2017 (COCO)."""
    schedule: int | Literal["1x", "2x"] = "1x"
    """1x: 18,000 steps of 16 images on VOC, 90,000 on COCO; 2x: twice as many; or the number of steps."""
    norm: Literal["frozen", "trained"] = "trained"
    """Batch norms of the backbone: trained further, or frozen (better for small batches)."""
    compare: tuple[str, ...] = ()
    """More models to start from, for comparison; random: the same network with random weights."""
    masks: bool = False
    """Also train and score masks (Mask R-CNN instead of Faster R-CNN); COCO only."""
    image_size: tuple[int, ...] = (800,)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Short side of the images in pixels; of several, one is drawn per training image, the last is for testing."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 0.02
    """Learning rate for 16 images per step; scaled to the batch size."""
    seed: int = 0
    """Seed of the heads' weights, the order of the images and their flips; the same for all start points."""
    workers: int | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Number of threads that decode images."""
    out: Path | None = None
    """Folder for evaluate-detect.json and .md and the checkpoints; by default the model's run folder, if it has one."""
    export_detectron2: Path | None = None
    """Only write the backbone, a plain ResNet, to this file under Detectron2's names (.pkl); needs no data."""

    def check(self) -> None:
        """Refuse settings that no detector could be trained with.

        Raises:
            InputError: names the first such setting.
        """
        self._check_data()
        super().check()
        if isinstance(self.schedule, int) and self.schedule not in COUNTS:
            raise InputError(self.schedule, f"give a number {COUNTS}", argument="schedule")
        if not self.image_size:
            raise InputError("(nothing)", f"give a number {Range(32)}", argument="image_size")
        if self.out is None and not Path(self.model).expanduser().is_dir():
            remedy = "give a folder for the report and the checkpoints, since the model is not a run folder"
            raise InputError(MISSING, remedy, argument="out")

    def _check_data(self) -> None:
        if not self.train_data:
            raise InputError(MISSING, "give the folder with the annotated images", argument="train_data")
        if self.format is None:
            raise InputError(MISSING, "give voc or coco", argument="format")
        for name, folders in (("train_data", self.train_data), ("test_data", self.test_data)):
            if self.format == "coco" and len(folders) > 1:
                raise InputError(" ".join(folders), "give one folder in COCO's layout", argument=name)
        if self.format == "voc" and self.masks:
            remedy = "VOC has no masks for its boxes; give `format` coco, or leave it out"
            raise InputError("given", remedy, argument="masks")
