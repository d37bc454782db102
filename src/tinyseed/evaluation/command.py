"""`evaluate knn` as a whole: model and data in, figures out and written down. Imports models, data and this room."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tinyseed.data.base import Source
from tinyseed.data.loader import evaluation_batches
from tinyseed.evaluation import reporting
from tinyseed.evaluation.bank import Photos, Precision, embed_side
from tinyseed.evaluation.common import (
    EvaluateConfig,
    Sides,
    at_least,
    bands_seen,
    check,
    device,
    open_model,
    open_sides,
)
from tinyseed.evaluation.features import embed, evaluating
from tinyseed.evaluation.knn import knn
from tinyseed.evaluation.reporting import Clock, Report
from tinyseed.evaluation.state import Figures
from tinyseed.models.encoder import Encoder

USUAL_K = (10, 20, 200)

Weighting = Literal["weighted", "majority"]


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluateConfig):
    """`tinyseed evaluate knn`: labelled images, a model, and how many neighbours vote."""

    k: tuple[int, ...] = ()
    """Neighbours that vote, one number or several; by default 10, 20 and 200, where there are so many images."""
    weighting: Literal["weighted", "majority", "both"] = "weighted"
    """A vote's weight: exp(similarity / 0.07), one each, or both ways."""
    bank_precision: Precision = "auto"
    """Bits of the features kept; auto: 16 for very large data sets, where 32 would take more than 4 GiB."""


def run_knn(config: KnnConfig) -> Report:
    """Embed both sides, let neighbours vote, write evaluate-knn.json.

    Raises:
        InputError: a path or model is wrong, labels are missing, or there are fewer images than neighbours.
    """
    clock = Clock()
    check(config)
    for neighbours in config.k:
        at_least("--k", neighbours, 1)
    sides = open_sides(config)
    encoder = open_model(config.model, config.image_size, arch=config.model_arch)
    results, unreadable = measure_knn(
        encoder,
        sides,
        k=config.k,
        weighting=config.weighting,
        workers=config.workers,
        precision=config.bank_precision,
    )
    notes = [*sides.notes]
    if sides.same:
        notes.append("leave-one-out: train and test are the same images, and no image votes for itself")
    return reporting.report(
        "knn",
        config,
        sides,
        results,
        model=config.model,
        encoder=encoder,
        clock=clock,
        notes=notes,
        unreadable=unreadable,
    )


def measure_knn(
    encoder: Encoder,
    sides: Sides,
    *,
    k: tuple[int, ...] = (),
    weighting: Literal["weighted", "majority", "both"] = "weighted",
    workers: int = 0,
    precision: Precision = "auto",
) -> tuple[list[Figures], int]:
    """k-NN figures in per cent, a row for each weighting and k; and how many images could not be read.

    Where both sides are the same images, no image votes for itself.

    Raises:
        InputError: there are fewer images than neighbours.
    """
    bank = embed_side(encoder, sides.train, workers=workers, precision=precision, title="training images")
    tested = bank
    if not sides.same:
        tested = embed_side(encoder, sides.test, workers=workers, precision=precision, title="test images")
    voters = len(bank.labels) - sides.same
    usual = tuple(number for number in USUAL_K if number <= max(voters, USUAL_K[0]))
    ways: tuple[Weighting, ...] = ("weighted", "majority") if weighting == "both" else (weighting,)
    results = []
    for way in ways:
        found = knn(
            bank.features,
            bank.labels,
            tested.features.to(device()),
            tested.labels,
            k=k or usual,
            weighting=way,
            leave_one_out=sides.same,
        )
        results += [
            {
                "k": result.k,
                "weighting": way,
                "top1": 100 * result.top1,
                "top5": 100 * result.top5,
            }
            for result in found
        ]
    return results, bank.unreadable + (0 if sides.same else tested.unreadable)


def embed_photos(encoder: Encoder, source: Source, size: int) -> Photos:
    """Embed a whole source in the evaluation view, labelled or not; nothing is kept in the cache."""
    where, contract = device(), encoder.input
    images = np.arange(len(source), dtype=np.int64)
    batches = evaluation_batches(
        source, images, size=size, interpolation=contract.interpolation, reader=bands_seen(contract)
    )
    encoder = encoder.to(where)
    with evaluating(encoder):
        bank = embed(encoder.features, batches, device=where, mean=contract.mean, std=contract.std)
    labels = np.full(len(source), -1) if source.labels is None else source.labels
    unreadable = len(images) - len(bank.indices)
    return Photos(bank.features, torch.from_numpy(labels[bank.indices.numpy()]), bank.indices, unreadable)


def table(report: Report) -> str:
    """The figures for a terminal."""
    sides = f"{report.test_images:,} test images against {report.train_images:,}"
    head = f"{report.model}: {sides}"
    rows = [
        f"  k {row['k']:>4}   top-1 {row['top1']:5.1f} %   top-5 {row['top5']:5.1f} %   {row['weighting']} votes"
        for row in report.results
    ]
    return "\n".join([head, *rows, *(f"  {note}" for note in report.notes)])
