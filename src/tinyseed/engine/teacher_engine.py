"""Which engine computes a run's teacher, and how far its embeddings agree with those of torch."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tinyseed.data.base import Source
from tinyseed.data.render import normalize
from tinyseed.data.split import sample
from tinyseed.engine.data import RunData
from tinyseed.engine.run_folder import RunFolder
from tinyseed.engine.runtime import Runtime
from tinyseed.errors import InputError, first_line
from tinyseed.evaluation.features import view_batches
from tinyseed.evaluation.health import neighbor_agreement
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.engines.base import EngineSpec
from tinyseed.models.engines.catalog import ENGINES
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import DistillSettings
from tinyseed.shapes import Images

COMPARED = 256
"""Images at most on which an engine's embeddings are compared with torch's; neighbors of ten are looked for there."""

FEWEST_FOR_NEIGHBORS = 64
"""With fewer images neighbors agree by chance, and only the cosines count."""


@dataclass(frozen=True)
class EngineAgreement:
    """How far an engine's embeddings agree with those of the torch network, for images that it was not built from.

    Attributes:
        engine: its name.
        images: how many were compared.
        cosine: mean cosine between both embeddings of an image.
        neighbor_agreement: fraction of the ten nearest neighbors that are the same; None for too few images.
    """

    engine: str
    images: int
    cosine: float
    neighbor_agreement: float | None

    def __str__(self) -> str:
        text = (
            f"teacher engine {self.engine}: embeddings of {self.images} images agree with torch's to cosine"
        )
        neighbors = self.neighbor_agreement
        return f"{text} {self.cosine:.4f}" + (
            "" if neighbors is None else f", and {100 * neighbors:.1f} % of the nearest neighbors"
        )


def engine_of(settings: DistillSettings, folder: RunFolder) -> str:
    """The name of the engine of a run; one that is resumed keeps its own.

    "auto" is torch, whatever is installed: the same command then gives the same numbers on every machine of a kind.
    """
    if settings.teacher_engine != "auto":
        return settings.teacher_engine
    return folder.settled("teacher_engine") or "torch"


def agreement_of(teacher: Teacher) -> dict[str, object]:
    """How far a teacher's engine agrees with torch, for summary.json; nothing for torch itself."""
    if not teacher.agreement:
        return {}
    return {
        "teacher_engine": teacher.engine,
        "teacher_engine_cosine": teacher.agreement["cosine"],
        "teacher_engine_agreement": teacher.agreement["neighbor_agreement"],
    }


def use_engine(
    teacher: Teacher, settings: DistillSettings, data: RunData, runtime: Runtime
) -> EngineAgreement | None:
    """Let the engine of the settings compute the teacher; None for torch, which it was made with.

    Raises:
        InputError: the engine cannot run here, cannot compute this network, or agrees too little with torch.
    """
    if settings.teacher_engine in ("auto", "torch"):
        return None
    spec = ENGINES[settings.teacher_engine]
    refused, agreement = None, None
    try:
        agreement = _build(spec, teacher, settings, data, runtime)
    except InputError as error:
        refused = error
    if any(runtime.largest([float(refused is not None)])):
        raise refused or InputError(spec.name, "another process could not use it", argument="teacher_engine")
    return agreement


def _build(
    spec: EngineSpec, teacher: Teacher, settings: DistillSettings, data: RunData, runtime: Runtime
) -> EngineAgreement:
    missing = spec.can_run()
    if missing is not None:
        raise InputError(spec.name, f"needs {missing}; or give torch", argument="teacher_engine")
    bands = teacher_bands(settings, teacher.input)
    built_from = sample(data.training, spec.images, settings.seed, "engine")
    others = data.held_out if len(data.held_out) >= FEWEST_FOR_NEIGHBORS else None
    source = data.source if others is None else data.held_out_source
    if others is None:
        others = np.setdiff1d(data.training, built_from)
    compared = _images(teacher, source, sample(others, COMPARED, settings.seed, "compared"), data, bands)
    with torch.no_grad(), runtime.autocast():
        wanted = teacher(compared.to(runtime.device))
        images = _images(teacher, data.source, built_from, data, bands).to(runtime.device)
        try:
            teacher.use(spec.build(teacher.backbone, images), spec.name)
            given = teacher(compared.to(runtime.device))
        except Exception as error:  # exporters and compilers fail in any way
            remedy = f"cannot compute this teacher ({first_line(error)}); give torch"
            raise InputError(spec.name, remedy, argument="teacher_engine") from error
    neighbors = neighbor_agreement(wanted, given) if len(given) >= FEWEST_FOR_NEIGHBORS else None
    cosine = float(functional.cosine_similarity(wanted, given).mean())
    agreement = EngineAgreement(spec.name, len(given), cosine, neighbors)
    _require(agreement, spec)
    teacher.agreement = asdict(agreement)
    return agreement


def _require(agreement: EngineAgreement, spec: EngineSpec) -> None:
    """Refuse an engine whose embeddings are too far from torch's; NaN is."""
    neighbors = 1.0 if agreement.neighbor_agreement is None else agreement.neighbor_agreement
    if agreement.cosine >= spec.cosine and neighbors >= spec.agreement:
        return
    found = f"its embeddings agree with torch's to cosine {agreement.cosine:.4f}"
    if agreement.neighbor_agreement is not None:
        found += f" and {100 * neighbors:.1f} % of the nearest neighbors"
    remedy = f"{found}; at least {spec.cosine:g} and {100 * spec.agreement:.0f} % are asked for: give torch"
    raise InputError(spec.name, remedy, argument="teacher_engine")


def _images(
    teacher: Teacher,
    source: Source,
    images: NDArray[np.int64],
    data: RunData,
    bands: tuple[int, ...] | None,
) -> Images:
    """Evaluation views as the teacher expects them, in channels-last memory."""
    expected = teacher.input
    batches = view_batches(source, images, expected, reader=data.reader)
    pixels = torch.cat([batch.pixels for batch in batches])
    chosen = (pixels if bands is None else pixels[:, list(bands)]).float()
    unit = chosen / 255 if pixels.dtype == torch.uint8 else chosen
    unit = unit.contiguous(memory_format=torch.channels_last)
    return normalize(unit, expected.mean, expected.std)
