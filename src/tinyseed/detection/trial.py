"""The measurement of one start point: a detector is trained from its weights and scored on the test split."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tinyseed.detection.annotations import AnnotatedSplits
from tinyseed.detection.batches import Views
from tinyseed.detection.detector import build_detector
from tinyseed.detection.score import Detection, average_precision, detect
from tinyseed.detection.settings import DetectSettings
from tinyseed.detection.train import REFERENCE_BATCH, Plan, Trained, schedule_steps, train
from tinyseed.evaluation.base import Measurement, Metrics
from tinyseed.evaluation.features import device, model_digest
from tinyseed.files import digest
from tinyseed.models.encoder import Encoder
from tinyseed.precision import autocast_dtype
from tinyseed.progress import Progress


def plan_of(settings: DetectSettings) -> Plan:
    """How the detector of every start point is trained."""
    assert settings.format is not None
    return Plan(
        schedule_steps(settings.schedule, settings.format, settings.batch_size),
        settings.lr * settings.batch_size / REFERENCE_BATCH,
        Views(settings.batch_size, settings.image_size, settings.seed, settings.masks),
    )


def name_of(encoder: Encoder, data: AnnotatedSplits, settings: DetectSettings) -> str:
    """A file name that stands for all that decides the metrics of a start point."""
    autocast = autocast_dtype("auto", device())
    decisive = (model_digest(encoder), plan_of(settings), settings.norm, autocast)
    key = digest(*decisive, *data.fingerprints.values(), digits=12)
    return f"{encoder.backbone.name.replace('/', '-')}-{key}"


def train_and_score(
    encoder: Encoder,
    data: AnnotatedSplits,
    settings: DetectSettings,
    checkpoint: Path,
    stop: Callable[[], bool],
) -> Measurement:
    """Train a detector from an encoder's weights and score it on the test split.

    Args:
        encoder: the start point.
        data: annotated images.
        settings: of the evaluation.
        checkpoint: file to save the training to and to resume it from; its name stands for what is trained.
        stop: whether the user has asked to stop.

    Raises:
        Interrupted: it was asked to stop; the training is saved.
        InputError: the checkpoint cannot be read.
        RunError: the training failed, or the checkpoint could not be written.
    """
    plan, name = plan_of(settings), encoder.backbone.name
    detector = build_detector(
        encoder,
        len(data.classes),
        masks=settings.masks,
        norm=settings.norm,
        seed=settings.seed,
        autocast=autocast_dtype("auto", device()),
    ).to(device())
    with Progress() as progress:
        shown = {"progress": progress, "stop": stop}
        progress.begin(f"{name}: training")
        trained = train(
            detector, data.train, plan, checkpoint=checkpoint, workers=_workers(settings), **shown
        )
        progress.begin(f"{name}: testing")
        detections, unreadable = detect(detector, data.test, plan.views, **shown)
    row = {"backbone": name, **_precisions(data, detections, settings), **_course(trained)}
    return Measurement((row,), unreadable=unreadable)


def _precisions(data: AnnotatedSplits, detections: list[Detection], settings: DetectSettings) -> Metrics:
    box = average_precision(data.test_split, detections, "bbox")
    mask = average_precision(data.test_split, detections, "segm") if settings.masks else None
    return {"box": asdict(box), "mask": None if mask is None else asdict(mask)}


def _course(trained: Trained) -> Metrics:
    """The loss at the beginning and the end of a training, and its seconds."""
    count = max(1, len(trained.losses) // 20)
    return {
        "loss_first": sum(trained.losses[:count]) / count,
        "loss_last": sum(trained.losses[-count:]) / count,
        "seconds": round(trained.seconds, 1),
    }


def _workers(settings: DetectSettings) -> int:
    """Two cores are left to the network; if there are more, half of them decode images, up to eight."""
    if settings.workers != "auto":
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores // 2)
