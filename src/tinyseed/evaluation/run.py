"""The driver of all evaluations: settings in, report out.

An evaluation's own part is its `measure`; checking the settings, opening the data and the models, timing, resuming,
reporting and cleaning up are done here, in one way for all.
"""

import time
from contextlib import ExitStack, nullcontext
from typing import Any, Literal

from tinyseed.checkpoints.load import load_model
from tinyseed.errors import argument
from tinyseed.evaluation.base import (
    Data,
    EvaluationSpec,
    Interrupted,
    Measurement,
    Resume,
    Subject,
    merge,
)
from tinyseed.evaluation.report import Report, report_folder, settings_json, versions, write_report
from tinyseed.evaluation.splits import open_splits
from tinyseed.locks import locked
from tinyseed.models.encoder import Encoder, embedding_as_features
from tinyseed.models.spec import ModelSpec, Output
from tinyseed.settings.evaluation import EvaluationSettings, ModelEvaluationSettings
from tinyseed.signals import Stopped, StopRequest, stop_request

INDIFFERENT = ("out", "workers", "recipe")
"""Settings that change no metric: an evaluation that was stopped may be resumed with others."""


def evaluate(spec: EvaluationSpec, settings: Any) -> Report:  # noqa: ANN401  (an instance of spec.settings)
    """Run an evaluation and write its report.

    Raises:
        InputError: a setting, path or model is wrong, labels are missing, or another process writes to the folder.
        RunError: the evaluation failed, or the report could not be written.
        Stopped: a signal stopped an evaluation that is `stoppable`; it has saved, and the same call resumes it.
    """
    began = time.perf_counter()
    settings.check()
    with ExitStack() as held, stop_request() if spec.stoppable else nullcontext(StopRequest()) as request:
        with request.at_once():  # there is nothing to save yet
            data = (spec.open_data or open_splits)(settings)
            subjects = (spec.subjects or _the_model)(settings)
        (main,) = (subject for subject in subjects if subject.role == spec.main)
        folder = report_folder(settings, main.name)
        if folder is not None:
            with argument("out"):
                held.enter_context(locked(folder, f".evaluate-{spec.name}.lock"))
        resumes = [_resume(spec, settings, data, subject, request) for subject in subjects]
        for resume in resumes:
            held.callback(resume.close)
        try:
            measured = [
                (subject, spec.measure(subject.encoder, data, settings, resume))
                for subject, resume in zip(subjects, resumes, strict=True)
            ]
        except Interrupted:
            message = "stopped and saved; the same command resumes it"
            raise Stopped(request.number, message) from None
        combined = spec.combine(measured, settings) if spec.combine else merge(measured)
        report = _report(spec, settings, data, main, combined, written=folder is not None, began=began)
        if folder is not None:
            write_report(spec, report, settings, folder, combined.files)
        for resume in resumes:
            resume.clear()
    return report


def _resume(
    spec: EvaluationSpec, settings: EvaluationSettings, data: Data, subject: Subject, request: StopRequest
) -> Resume:
    decisive = {name: value for name, value in settings_json(settings).items() if name not in INDIFFERENT}
    return Resume.of(
        spec.name, decisive, subject.role, subject.digest, data.fingerprints, stop=lambda: request.asked
    )


def _report(
    spec: EvaluationSpec,
    settings: EvaluationSettings,
    data: Data,
    main: Subject,
    combined: Measurement,
    *,
    written: bool,
    began: float,
) -> Report:
    notes = [*data.notes, *combined.notes]
    if combined.unreadable:
        notes.append(f"{combined.unreadable:,} unreadable images left out")
    if not written:
        notes.append("no report was written, since the model is not a run folder: give `out`")
    report = Report(
        evaluation=spec.name,
        model=main.name,
        image_size=main.encoder.input.size,
        train_images=len(data.train),
        test_images=len(data.test),
        unreadable_images=combined.unreadable,
        classes=len(data.classes),
        results=combined.metrics,
        notes=tuple(dict.fromkeys(notes)),
        settings=settings_json(settings),
        data=data.fingerprints,
        weights=main.digest,
        seconds=round(time.perf_counter() - began, 1),
        versions=versions(),
    )
    return spec.report(report, data, settings) if spec.report else report


def _the_model(settings: ModelEvaluationSettings) -> tuple[Subject, ...]:
    """The model in `model`, as the only subject of an evaluation."""
    names = {name: f"model_{name}" for name in ("arch", "prefix", "output", "mean", "std", "interpolation")}
    with argument("model", **names):
        encoder = open_model(
            settings.model,
            settings.image_size,
            **{name: getattr(settings, setting) for name, setting in names.items()},
        )
    return (Subject("model", settings.model, encoder),)


def open_model(
    spec: str,
    image_size: int | Literal["auto"],
    *,
    output: Output = "backbone",
    round_size: bool = False,
    **fields: Any,  # noqa: ANN401
) -> Encoder:
    """A model in evaluation mode whose input contract has this image size.

    Args:
        spec: a run folder, a checkpoint file or its URL, or a backbone's name.
        image_size: in pixels; "auto": what the model was trained with.
        output: what its features are: the backbone's, or for "head" the embedding.
        round_size: raise the size to the next that the model can take (a multiple of a ViT's patch).
        fields: further fields of `ModelSpec`.

    Raises:
        InputError: there is no such model, it has no head, or it cannot take images of this size.
    """
    size = None if image_size == "auto" else image_size
    encoder = load_model(ModelSpec(spec, output=output, image_size=size, round_size=round_size, **fields))
    return embedding_as_features(encoder) if output == "head" else encoder
