"""The Python functions: the same as the command line, and the models for other people's code."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinyseed.checkpoints import load as models
from tinyseed.checkpoints.public import ModelDescription
from tinyseed.checkpoints.saved import load_encoder
from tinyseed.detection.export import export_detectron2 as write_detectron2
from tinyseed.engine.run_folder import Metrics
from tinyseed.engine.train import train, train_students
from tinyseed.errors import MISSING, InputError, RunError, argument
from tinyseed.evaluation.report import Report
from tinyseed.evaluation.run import evaluate as run_evaluation
from tinyseed.evaluations import find_evaluation
from tinyseed.methods.catalog import distill_methods, find_method, find_methods, pretrain_methods
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import ModelSpec, Output
from tinyseed.models.teacher import Teacher
from tinyseed.recipes import recipe_for
from tinyseed.settings.base import aliases
from tinyseed.settings.several import given_for, several_methods
from tinyseed.settings.train import TrainSettings
from tinyseed.studies.catalog import find_study
from tinyseed.studies.results import Results
from tinyseed.studies.run import run_study as run_cells
from tinyseed.studies.settings import StudySettings

Paths = str | Path | Sequence[str | Path]

PRETRAIN_METHODS = {name: spec.settings for name, spec in pretrain_methods().items()}
"""The methods of `pretrain` and their settings."""

DISTILL_METHODS = {name: spec.settings for name, spec in distill_methods().items()}
"""The methods of `distill` and their settings."""

__all__ = [
    "DISTILL_METHODS",
    "PRETRAIN_METHODS",
    "describe_teacher",
    "distill",
    "evaluate",
    "export_detectron2",
    "load",
    "load_teacher",
    "pretrain",
    "run_study",
]


def distill(
    *,
    data: Paths,
    teacher: str | Path,
    student: str | Sequence[str],
    out: str | Path,
    method: str | Sequence[str] = "seed",
    grid: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Metrics | dict[str, Metrics]:
    """Train a small student on unlabeled images to reproduce a frozen teacher's representation.

    Args:
        data: folders, Parquet files, or text files of paths.
        teacher: a run folder, a checkpoint file or its URL, or a model name.
        student: a model name (timm's, or torchvision/NAME), or several, which learn from the same pass of the teacher.
        out: folder to write the run to; of several runs, the folder of their folders.
        method: how the student learns, one of `DISTILL_METHODS`, or several, each of which trains runs of its own.
        grid: values of a student's settings, such as `{"teacher_temperature": [0.01, 0.1]}`: a run for each of them,
            or for each combination.
        settings: further settings, named as the flags of `tinyseed distill --method NAME` (`epochs=20`,
            `image_size=64`); `recipe="seed-imagenet"` provides those that are not given. Of several methods each takes
            those that it has.

    Returns:
        The metrics of summary.json; of several runs, by their names.

    Raises:
        InputError: a setting, path or model is wrong.
        RunError: the run failed, or one of several, after the others have ended; its last checkpoint is intact.
    """
    students = [student] if isinstance(student, str) else list(student)
    if not students:
        raise InputError(MISSING, "give at least one network", argument="student")
    names = [method] if isinstance(method, str) else list(method)
    specs = {spec.name: spec for spec in find_methods(names, distill_methods())}
    kinds: dict[str, type[TrainSettings]] = {name: spec.settings for name, spec in specs.items()}
    given = {"data": data, "teacher": teacher, "student": students[0], "out": out, **settings}
    recipe_for(settings.get("recipe"), [spec.command for spec in specs.values()])
    filled = {
        name: _filled(spec.settings, given_for(given, spec.settings, kinds.values()), spec.command)
        for name, spec in specs.items()
    }
    (first, *others), grid = filled, grid or {}
    if not others and len(students) == 1 and not grid:
        return train(filled[first])
    values = {
        name: {field.name: getattr(of_method, field.name) for field in dataclasses.fields(of_method)}
        for name, of_method in filled.items()
    }
    grids = {name: given_for(grid, kind, kinds.values()) for name, kind in kinds.items()}
    outcomes = train_students(several_methods(kinds, values, students, grids))
    failed = [f"{name}: {error}" for name, error in outcomes.items() if isinstance(error, RunError)]
    if failed:
        raise RunError("; ".join(failed))
    return {name: metrics for name, metrics in outcomes.items() if not isinstance(metrics, RunError)}


def pretrain(
    method: Literal["moco-v1", "moco-v2", "simclr", "swav"] | str,
    *,
    data: Paths,
    backbone: str,
    out: str | Path,
    **settings: Any,  # noqa: ANN401
) -> Metrics:
    """Train a network without labels and without a teacher.

    Args:
        method: one of `PRETRAIN_METHODS`.
        data: folders, Parquet files, or text files of paths.
        backbone: a model name (timm's, or torchvision/NAME).
        out: folder to write the run to.
        settings: further settings, named as the flags of `tinyseed pretrain METHOD`; `recipe="simclr-imagenet"`
            provides those that are not given.

    Returns:
        The metrics of summary.json.

    Raises:
        InputError: a setting, path or model is wrong.
        RunError: the run failed; its last checkpoint is intact.
    """
    spec = find_method(method, pretrain_methods())
    given = {"data": data, "backbone": backbone, "out": out, **settings}
    return train(_filled(spec.settings, given, spec.command))


def evaluate(
    evaluation: Literal["knn", "linear", "semi", "transfer", "retention", "detect"] | str,
    *,
    train_data: Paths,
    test_data: Paths = (),
    **settings: Any,  # noqa: ANN401
) -> Report:
    """Measure a model on labeled images.

    Args:
        evaluation: its name.
        train_data: labeled images to learn the classes from.
        test_data: labeled images to measure on.
        settings: further settings, named as the flags of `tinyseed evaluate NAME`, above all `model` (retention:
            `student` and `teacher`); for k-NN, linear and semi `recipe="seed-knn"` provides those that are not given.

    Raises:
        InputError: a setting, path or model is wrong, or the images have no labels.
    """
    spec = find_evaluation(evaluation)
    given = {"train_data": train_data, "test_data": test_data, **settings}
    if not test_data and any(
        field.name == "test_data" and field.default is dataclasses.MISSING
        for field in dataclasses.fields(spec.settings)
    ):
        raise InputError(MISSING, "give labeled images to measure on", argument="test_data")
    return run_evaluation(spec, _filled(spec.settings, given, f"evaluate {spec.name}"))


def run_study(
    study: str,
    *,
    data: Paths,
    test_data: Paths,
    out: str | Path,
    budget: str = "",
    **settings: Any,  # noqa: ANN401
) -> Results:
    """Train and measure the rows of a study, such as a table of the SEED paper; the same call resumes a stopped one.

    Args:
        study: its name, as `tinyseed recipes run` lists them.
        data: images to train on.
        test_data: labeled images to measure on.
        out: folder for the runs, the table and the plot.
        budget: of each cell, as in "5min" or "20epochs"; by default the study's own.
        settings: further settings, named as the flags of `tinyseed recipes run NAME` (`seeds=3`, `teacher="runs/big"`,
            `set=["image_size=32"]`, `tune=["lr=0.03,0.1"]`).

    Returns:
        What is in results.json; cells that failed are in its `failed`.

    Raises:
        InputError: a setting, path or model is wrong, or the folder holds something else.
        RunError: the results could not be written.
    """
    found = find_study(study)
    given = {"data": data, "test_data": test_data, "out": out, "budget": budget, **settings}
    return run_cells(found, _filled(StudySettings, given))


def load(path: str | Path) -> Encoder:
    """The trained encoder of a run folder or exported file, in evaluation mode.

    Raises:
        InputError: there is no model at this path.
    """
    with argument("path"):
        return load_encoder(path).eval()


def load_teacher(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    arch: str | None = None,
    output: Output = "auto",
    small_stem: bool = False,
    image_size: int | None = None,
    seed: int | None = 0,
    prefix: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto",
    field: str | None = None,
) -> Teacher:
    """A frozen teacher from a run of tinyseed, a public checkpoint, or a model name.

    Args:
        spec: a run folder, an exported file, a checkpoint of a known format (docs/teachers.md), any of these files
            by URL, transformers:FOLDER_OR_ID, or a name (timm's, torchvision/NAME, swav/NAME, seed/NAME, or
            tinyseed/clothing-resnet18, which is bundled). A teacher given by a library's name has no projector: its
            rows are the normalized backbone features.
        weights: for a name: a file with the library's state dict, "random", or None for the library's pre-trained
            weights (cached, or downloaded).
        arch: for a checkpoint that does not state its architecture: the name of the network.
        output: "head" for the embedding, "backbone" for the features; "auto" is the head, where there is one.
        small_stem: for a name: whether its weights are for the small stem.
        image_size: side length in pixels of the images that it will see, raised to the next one it can take (a multiple
            of a ViT's patch; see `Teacher.input.size`). By default what it was made for.
        seed: of random weights.
        prefix: part of a checkpoint, by what its tensors' names begin with: one of several networks or a module
            (`model_ema`, `encoder_k`, `teacher.backbone`).
        mean: of the images that it expects, by channel; by default what is known of it.
        std: the same for the standard deviation.
        interpolation: how images are resized for it; "auto": as it was trained.
        field: what errors call the model instead of `spec`, for code that passes on an argument of its own.

    Raises:
        InputError: no such model, weights that do not fit or cannot be downloaded, a size that it cannot take.
    """
    with argument(field or "spec"):
        return models.load_teacher(
            spec,
            weights=weights,
            arch=arch,
            prefix=prefix,
            output=output,
            small_stem=small_stem,
            image_size=image_size,
            seed=seed,
            mean=tuple(mean),
            std=tuple(std),
            interpolation=interpolation,
        )


def describe_teacher(
    spec: str | Path,
    *,
    arch: str | None = None,
    prefix: str | None = None,
    output: Output = "auto",
    field: str | None = None,
) -> ModelDescription:
    """Describe a teacher's file, folder or name. Files are loaded, so errors show what does not fit.

    Args:
        spec: as for `load_teacher`.
        arch: as for `load_teacher`.
        prefix: as for `load_teacher`.
        output: as for `load_teacher`.
        field: what errors call the model, as for `load_teacher`.

    Raises:
        InputError: as `load_teacher`.
    """
    with argument(field or "spec"):
        return models.describe_model(spec, arch=arch, prefix=prefix, output=output)


def export_detectron2(model: str | Path, path: str | Path) -> Path:
    """Write a plain ResNet's backbone with Detectron2's names; `model` is what `evaluate` takes.

    Raises:
        InputError: no such model, another network, or a path that does not end in .pkl.
    """
    with argument("model"):
        encoder = models.load_model(ModelSpec(model, output="backbone"))
    with argument("export_detectron2"):
        return write_detectron2(encoder, path)


def _filled(kind: type, given: dict[str, Any], command: str | None = None) -> Any:  # noqa: ANN401
    """Settings from keyword arguments on top of a recipe's; an unknown name is refused with the closest one."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    former = aliases(kind)
    given = {former.get(name, name): value for name, value in given.items()}
    for name, value in given.items():
        if name not in fields:
            close = difflib.get_close_matches(name, [*fields, *former], n=1)
            remedy = f"unknown setting; did you mean {close[0]}?" if close else "unknown setting"
            raise InputError(value, remedy, argument=name)
    recipe = given.get("recipe")
    filled = given if command is None else recipe_for(recipe, [command]) | given
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in filled:
            raise InputError(MISSING, "give it", argument=name)
    hints = get_type_hints(kind)
    return kind(**{name: _held(value, hints[name]) for name, value in filled.items()})


def _held(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """A value as the settings hold it: several as a tuple, paths as texts, or as `Path` where the field wants one."""
    options = get_args(hint) if get_origin(hint) is not tuple else ()
    if get_origin(hint) is tuple:
        several = [value] if isinstance(value, str | Path | int | float) else list(value)
        return tuple(str(item) if isinstance(item, Path) else item for item in several)
    if hint is Path or Path in options:
        return None if value is None else Path(value)
    return str(value) if isinstance(value, Path) else value
