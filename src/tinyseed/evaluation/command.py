"""`evaluate knn` as a whole: model and data in, figures out and written down. Imports models, data and this room."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseed.data.bands import bands_of, require_readers
from tinyseed.data.loader import BadRecord, EvaluationBatch, evaluation_batches
from tinyseed.data.sources import Source, open_source
from tinyseed.data.split import sample
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.features import embed, evaluating
from tinyseed.evaluation.knn import KnnResult, align_labels, knn
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import load_model
from tinyseed.shapes import Features

USUAL_K = (10, 20, 200)


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """`tinyseed evaluate knn`: labelled images, a model, and how many neighbours vote."""

    model: str
    """A run folder, a checkpoint file or its URL, a backbone's name (docs/teachers.md), or random:NAME."""
    model_arch: str | None = None
    """Network of a checkpoint file that does not say what it is: a model's name."""
    train_data: tuple[str, ...]
    """Labelled images whose classes vote."""
    test_data: tuple[str, ...]
    """Labelled images to tell the class of."""
    k: tuple[int, ...] = ()
    """Neighbours that vote, one number or several; by default 10, 20 and 200, where there are so many images."""
    weighting: Literal["weighted", "majority"] = "weighted"
    """A vote's weight: exp(similarity / 0.07), or one each."""
    image_size: int | Literal["auto"] = "auto"
    """Side of the images in pixels; auto: what the model was trained with."""
    limit: int | None = None
    """Use at most so many images of each side, for a quick look."""
    out: Path | None = None
    """Folder for evaluate-knn.json; by default the run folder, where the model is one."""
    workers: int = 0
    """Processes that decode images."""


@dataclass(frozen=True)
class KnnReport:
    """What evaluate-knn.json holds; shares are in per cent."""

    model: str
    image_size: int
    train_images: int
    test_images: int
    unreadable_images: int
    classes: int
    weighting: str
    results: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Photos:
    """Embedded images: features, labels (-1 where there is none) and positions in their source."""

    features: Features
    labels: Tensor
    indices: Tensor
    unreadable: int = 0


def run_knn(config: KnnConfig) -> KnnReport:
    """Embed both sides, let neighbours vote, write evaluate-knn.json.

    Raises:
        InputError: a path or model is wrong, labels are missing, or there are fewer images than neighbours.
    """
    _check(config)
    train, test = open_source(config.train_data, "--train-data"), open_source(config.test_data, "--test-data")
    for source, flag, given in (
        (train, "--train-data", config.train_data),
        (test, "--test-data", config.test_data),
    ):
        if source.labels is None:
            raise InputError(
                flag, " ".join(given), "has no labels; give sub-folders named by class, or a label column"
            )
    wanted = None if config.image_size == "auto" else config.image_size
    encoder = load_model(config.model, arch=config.model_arch, image_size=wanted)
    size = encoder.input.size if config.image_size == "auto" else config.image_size
    banks = [
        embed_photos(encoder, source, size, train.classes, limit=config.limit, workers=config.workers)
        for source in (train, test)
    ]
    voters = int((banks[0].labels >= 0).sum())
    results = knn(
        banks[0].features,
        banks[0].labels,
        banks[1].features,
        banks[1].labels,
        k=config.k or tuple(number for number in USUAL_K if number <= max(voters, USUAL_K[0])),
        weighting=config.weighting,
    )
    report = KnnReport(
        model=config.model,
        image_size=size,
        train_images=len(banks[0].labels),
        test_images=len(banks[1].labels),
        unreadable_images=sum(bank.unreadable for bank in banks),
        classes=len(train.classes),
        weighting=config.weighting,
        results=tuple(_figures(result) for result in results),
    )
    _write(config, report)
    return report


def embed_photos(
    encoder: Encoder,
    source: Source,
    size: int,
    classes: tuple[str, ...] | None = None,
    *,
    limit: int | None = None,
    workers: int = 0,
) -> Photos:
    """Embed a source in the evaluation view; labels are positions in `classes` (the source's own by default)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    indices: NDArray[np.int64] = np.arange(len(source))
    if limit is not None:
        indices = sample(indices, limit, seed=0, name="limit")
    contract = encoder.input
    bands = bands_of(contract.channels, contract.pixel_range)
    if bands is not None:
        require_readers(source, indices, "--model")
    batches = evaluation_batches(
        source, indices, size=size, interpolation=contract.interpolation, bands=bands, workers=workers
    )
    encoder = encoder.to(device)
    bad: list[BadRecord] = []
    with evaluating(encoder):
        try:
            bank = embed(
                encoder.features, _noting(batches, bad), device=device, mean=contract.mean, std=contract.std
            )
        except RunError as error:
            why = f" (the last, {bad[-1].name}: {bad[-1].reason})" if bad else ""
            raise RunError(f"{error}{why}") from error
    given = np.full(len(source), -1) if source.labels is None else source.labels
    labels = align_labels(source.classes if classes is None else classes, source.classes, given)
    unreadable = len(indices) - len(bank.indices)
    return Photos(bank.features, torch.from_numpy(labels[bank.indices.numpy()]), bank.indices, unreadable)


def _noting(batches: Iterable[EvaluationBatch], bad: list[BadRecord]) -> Iterator[EvaluationBatch]:
    for batch in batches:
        bad += batch.bad
        yield batch


def table(report: KnnReport) -> str:
    """The figures for a terminal."""
    sides = f"{report.test_images:,} test images against {report.train_images:,}"
    head = f"{report.model}: {sides}, {report.weighting} votes"
    rows = [
        f"  k {row['k']:>4}   top-1 {row['top1']:5.1f} %   top-5 {row['top5']:5.1f} %"
        for row in report.results
    ]
    unreadable = (
        [f"  {report.unreadable_images} unreadable images left out"] if report.unreadable_images else []
    )
    return "\n".join([head, *rows, *unreadable])


def _check(config: KnnConfig) -> None:
    for neighbours in config.k:
        if neighbours < 1:
            raise InputError("--k", neighbours, "give whole numbers of at least 1")
    if config.limit is not None and config.limit < 1:
        raise InputError("--limit", config.limit, "give a number of at least 1")
    if config.image_size != "auto" and config.image_size < 8:
        raise InputError("--image-size", config.image_size, "give a number of at least 8")
    if config.workers < 0:
        raise InputError("--workers", config.workers, "give a number of at least 0")


def _figures(result: KnnResult) -> dict[str, float]:
    return {"k": result.k, "top1": 100 * result.top1, "top5": 100 * result.top5}


def _write(config: KnnConfig, report: KnnReport) -> None:
    folder = config.out or (Path(config.model) if Path(config.model).is_dir() else None)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(report), indent=2)
    (folder / "evaluate-knn.json").write_text(content + "\n", encoding="utf-8")
