"""The Python mirror of the command line. Imports engine, evaluate and report."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinyseed.detection import evaluate as detection
from tinyseed.detection.export import export_detectron2 as write_detectron2
from tinyseed.detection.settings import DetectSettings
from tinyseed.engine.config import (
    DistillConfig,
    PretrainMoCoConfig,
    PretrainMoCoV1Config,
    PretrainSimCLRConfig,
    PretrainSwAVConfig,
    RunConfig,
)
from tinyseed.engine.run_folder import Figures
from tinyseed.engine.runtime import is_main_process
from tinyseed.engine.signals import Stopped, stop_request
from tinyseed.engine.train import train
from tinyseed.errors import InputError, argument
from tinyseed.evaluation.catalog import find_evaluation
from tinyseed.evaluation.report import Report
from tinyseed.evaluation.run import evaluate as run_evaluation
from tinyseed.models.encoder import Encoder, load_encoder
from tinyseed.models.teacher import load_model
from tinyseed.recipes import settings_of
from tinyseed.report.page import write_report

Paths = str | Path | Sequence[str | Path]

PRETRAIN_METHODS: dict[
    str, type[PretrainMoCoConfig] | type[PretrainSimCLRConfig] | type[PretrainSwAVConfig]
] = {
    "moco-v1": PretrainMoCoV1Config,
    "moco-v2": PretrainMoCoConfig,
    "simclr": PretrainSimCLRConfig,
    "swav": PretrainSwAVConfig,
}
"""The methods of `pretrain` and their settings."""

__all__ = [
    "PRETRAIN_METHODS",
    "distill",
    "evaluate",
    "export_detectron2",
    "load",
    "pretrain",
    "run",
    "run_detect",
]


def distill(*, data: Paths, teacher: str | Path, student: str, out: str | Path, **settings: Any) -> Figures:  # noqa: ANN401
    """Train a small student on unlabelled images to see as a frozen teacher does.

    Args:
        data: folders, Parquet files, or text files of paths.
        teacher: a run folder, an exported file, or a model's name.
        student: a model's name (timm's, or torchvision/NAME).
        out: folder that the run is written to.
        settings: fields of `DistillConfig`, named as the flags of `tinyseed distill` (`epochs=20`, `image_size=64`);
            `recipe="seed-imagenet"` fills in those that are not given.

    Returns:
        The figures of summary.json.

    Raises:
        InputError: a setting, path or model is wrong.
        RunError: the run failed; its last checkpoint is whole.
    """
    required = {"data": _several(data), "teacher": str(teacher), "student": student, "out": Path(out)}
    return run(DistillConfig(**required, **_settings(DistillConfig, settings, "distill")))


def pretrain(
    method: Literal["moco-v1", "moco-v2", "simclr", "swav"],
    *,
    data: Paths,
    backbone: str,
    out: str | Path,
    **settings: Any,  # noqa: ANN401
) -> Figures:
    """Train a network by itself on unlabelled images.

    `settings` are the flags of `tinyseed pretrain METHOD` (fields of `PRETRAIN_METHODS[method]`);
    `recipe="simclr-imagenet"` fills in those that are not given.

    Returns:
        The figures of summary.json.

    Raises:
        InputError: a setting, path or model is wrong.
        RunError: the run failed; its last checkpoint is whole.
    """
    if method not in PRETRAIN_METHODS:
        raise InputError("method", method, f"give one of {', '.join(PRETRAIN_METHODS)}")
    config = PRETRAIN_METHODS[method]
    required = {"data": _several(data), "backbone": backbone, "out": Path(out)}
    return run(config(**required, **_settings(config, settings, f"pretrain {method}")))


def evaluate(
    evaluation: str,
    *,
    train_data: Paths,
    test_data: Paths = (),
    **settings: Any,  # noqa: ANN401
) -> Report:
    """Measure a model on labelled images.

    Args:
        evaluation: which.
        train_data: labelled images to learn the classes from.
        test_data: labelled images to tell the class of.
        settings: the other flags of `tinyseed evaluate NAME`, above all `model` (retention: `student`, `teacher`).

    Raises:
        InputError: a setting, path or model is wrong, or the images have no labels.
    """
    if evaluation == "detect":
        required = {"train_data": _several(train_data), "test_data": _several(test_data)}
        return run_detect(DetectSettings(**required, **_settings(DetectSettings, settings)))
    if not test_data:
        raise InputError("test_data", "missing", "give labelled images to tell the class of")
    chosen = find_evaluation(evaluation)
    former = {field.metadata.get("alias"): field.name for field in dataclasses.fields(chosen.settings)}
    settings = {former.get(name, name): value for name, value in settings.items()}
    given = _settings(chosen.settings, {"train_data": train_data, "test_data": test_data} | settings)
    for field in dataclasses.fields(chosen.settings):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise InputError(field.name, "missing", "give it")
    report = run_evaluation(chosen, chosen.settings(**given))
    assert report is not None
    return report


def load(path: str | Path) -> Encoder:
    """The trained encoder of a run folder or exported file, in evaluation mode.

    Raises:
        InputError: there is no model at this path.
    """
    return load_encoder(path).eval()


def run(config: RunConfig) -> Figures:
    """Train as a complete configuration says, then write the report."""
    summary = train(config)
    if is_main_process():
        write_report(config.out)
    return summary


def run_detect(config: DetectSettings) -> Report:
    """Evaluate by detection; Ctrl-C and SIGTERM save first.

    Raises:
        Stopped: it was stopped and has saved; the same configuration goes on.
    """
    with stop_request() as request:
        report = run_evaluation(detection.SPEC, config, stop=lambda: request.number != 0)
    if report is None:
        raise Stopped(request.number, "stopped and saved; the same command goes on")
    return report


def export_detectron2(model: str | Path, path: str | Path) -> Path:
    """Write a plain ResNet's trunk with Detectron2's names; `model` is what `evaluate` takes.

    Raises:
        InputError: no such model, another network, or a path that does not end in .pkl.
    """
    with argument("model"):
        return write_detectron2(load_model(model), path)


def _several(paths: Paths) -> tuple[str, ...]:
    return (str(paths),) if isinstance(paths, str | Path) else tuple(str(path) for path in paths)


def _settings(config: type, given: dict[str, Any], verb: str | None = None) -> dict[str, Any]:
    """Settings as their fields hold them, on top of a recipe's; an unknown name is refused with the closest one."""
    known = {field.name for field in dataclasses.fields(config)}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                name,
                value,
                f"no such setting; did you mean {close[0]}?" if close else "no such setting",
            )
    recipe = given.get("recipe")
    filled = given if recipe is None or verb is None else settings_of(recipe, verb) | given
    hints = get_type_hints(config)
    return {name: _held(name, value, hints[name]) for name, value in filled.items()}


def _held(name: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    """A value as the settings hold it: paths as texts, several things or one of several as a tuple, `out` as a path."""
    if name in ("data", "val_data", "train_data", "test_data", "compare"):
        return _several(value)
    if name == "out":
        return None if value is None else Path(value)
    if isinstance(value, list):
        return tuple(str(item) if isinstance(item, Path) else item for item in value)
    if isinstance(value, int | float) and get_origin(hint) is tuple and get_args(hint)[-1] is ...:
        return (value,)
    return str(value) if isinstance(value, Path) else value
