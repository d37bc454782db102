"""`evaluate detect`: how good is a detector that is trained from a model's weights?"""

from contextlib import closing
from typing import TYPE_CHECKING

from tinyseed.detection.annotations import AnnotatedSplit, AnnotatedSplits
from tinyseed.detection.coco import read_coco
from tinyseed.detection.masks import pycocotools_mask
from tinyseed.detection.report import DetectReport, DetectResult, page, table
from tinyseed.detection.settings import DEFAULT_SPLITS, RANDOM_INIT, DetectSettings
from tinyseed.detection.voc import read_voc
from tinyseed.errors import InputError, argument
from tinyseed.evaluation.base import EvaluationSpec, Measured, Measurement, Resume, Subject
from tinyseed.evaluation.report import Report, report_folder
from tinyseed.lazy import lazy
from tinyseed.progress import Progress

if TYPE_CHECKING:
    from tinyseed.checkpoints import load as loading
    from tinyseed.detection import levels, trial
    from tinyseed.models import encoder as models
    from tinyseed.models import spec as specs
else:
    levels, trial = lazy("tinyseed.detection.levels", "tinyseed.detection.trial")
    loading, models, specs = lazy(
        "tinyseed.checkpoints.load", "tinyseed.models.encoder", "tinyseed.models.spec"
    )


def open_data(settings: DetectSettings) -> AnnotatedSplits:
    """Read the annotations of both splits.

    Raises:
        InputError: pycocotools is missing, or a path, split or annotation is wrong.
    """
    pycocotools_mask()
    progress = Progress()
    progress.say("reading annotations")
    data = _read(settings)
    for line in (*data.notes, *_start_notes(settings)):
        progress.say(line)
    return data


def _read(settings: DetectSettings) -> AnnotatedSplits:
    assert settings.format is not None
    train_split, test_split = DEFAULT_SPLITS[settings.format]
    with argument("train_data", split="train_split"):
        train = _read_split(settings, settings.train_data, settings.train_split or train_split)
        if not train.trainable:
            raise InputError(" ".join(settings.train_data), _nothing("train on", train))
    test_data = settings.test_data or settings.train_data
    with argument("test_data" if settings.test_data else "train_data", split="test_split"):
        test = _read_split(settings, test_data, settings.test_split or test_split, train.classes)
        if not test.boxes:
            raise InputError(" ".join(test_data), _nothing("detect", test))
    return AnnotatedSplits(train, test)


def _read_split(
    settings: DetectSettings, folders: tuple[str, ...], split: str, classes: tuple[str, ...] | None = None
) -> AnnotatedSplit:
    if settings.format == "voc":
        return read_voc(folders, split, classes=classes, limit=settings.limit)
    return read_coco(folders[0], split, classes=classes, limit=settings.limit, masks=settings.masks)


def _nothing(purpose: str, split: AnnotatedSplit) -> str:
    """That a split has nothing to train on or to detect, with what was dropped from it."""
    return "; ".join([f"this split has no box to {purpose}", *split.issues.lines()])


def subjects(settings: DetectSettings) -> tuple[Subject, ...]:
    """The start points: the model, and those to compare it with.

    Raises:
        InputError: there is no such model, or it has no feature maps to build a detector on.
    """
    with argument("model"):
        model = loading.load_model(specs.ModelSpec(settings.model, output="backbone", seed=settings.seed))
        levels.feature_levels(model.backbone, norm=settings.norm)
    found = [Subject("model", settings.model, model)]
    with argument("compare"):
        for name in settings.compare:
            if name == RANDOM_INIT:
                encoder = loading.random_init(model, settings.seed)
            else:
                encoder = loading.load_model(specs.ModelSpec(name, output="backbone", seed=settings.seed))
            levels.feature_levels(encoder.backbone, norm=settings.norm)
            found.append(Subject("compare", name, encoder))
    return tuple(found)


def measure(
    encoder: "models.Encoder", data: AnnotatedSplits, settings: DetectSettings, resume: Resume
) -> Measurement:
    """Train a detector from one start point and score it on the test split.

    The result stays beside the report, so the same start point is not trained again for the same settings and data.

    Raises:
        Interrupted: the user asked to stop; the training is saved.
        RunError: the training failed, or a file could not be written.
    """
    folder = report_folder(settings, settings.model)
    assert folder is not None, "settings.check() requires one"
    kept = Resume(folder / "detect", resume.stop)
    name = trial.name_of(encoder, data, settings)
    result, checkpoint = kept.folder / f"{name}.json", kept.folder / f"{name}.ckpt"
    if result.is_file():
        Progress().say(f"{encoder.backbone.name}: trained before with these settings ({result})")
    with argument("out"), closing(kept):
        measured = kept.remember(
            name, lambda: trial.train_and_score(encoder, data, settings, checkpoint, resume.stop)
        )
    checkpoint.unlink(missing_ok=True)
    return measured


def combine(measured: Measured, settings: DetectSettings) -> Measurement:
    """A row for each start point, under its name."""
    del settings
    rows = tuple({"start": subject.name} | measurement.row for subject, measurement in measured)
    return Measurement(rows, unreadable=max(measurement.unreadable for _, measurement in measured))


def report(given: Report, data: AnnotatedSplits, settings: DetectSettings) -> DetectReport:
    """The driver's report with the entries of this evaluation."""
    plan = trial.plan_of(settings)
    notes = [*data.notes, *_start_notes(settings)]
    if given.unreadable_images:
        notes.append(
            f"test: {given.unreadable_images} images could not be decoded: nothing is detected in them"
        )
    own = {
        "format": settings.format,
        "image_size": settings.image_size,
        "train_boxes": data.train_split.boxes,
        "test_boxes": data.test_split.boxes,
        "classes": data.classes,
        "results": tuple(map(DetectResult.of, given.results)),
        "notes": tuple(notes),
        "schedule": str(settings.schedule),
        "steps": plan.steps,
        "batch_size": settings.batch_size,
        "lr": plan.lr,
        "norm": settings.norm,
        "masks": settings.masks,
        "seed": settings.seed,
    }
    return DetectReport(**(vars(given) | own))


def _start_notes(settings: DetectSettings) -> tuple[str, ...]:
    """What makes a comparison of these start points less meaningful than it seems."""
    if settings.norm == "trained":
        return ()
    why = "its frozen batch norms keep the scale of 0 that many libraries initialize residual branches with"
    starts = (settings.model, *settings.compare)
    untrained = [name for name in starts if name == RANDOM_INIT or name.startswith(specs.RANDOM)]
    return tuple(f"{name}: {why}; compare with `norm` trained" for name in untrained)


SPEC = EvaluationSpec(
    name="detect",
    settings=DetectSettings,
    measure=measure,
    about="Detection: how good is a Faster R-CNN (or Mask R-CNN) that is trained from the model's weights?",
    example="tinyseed evaluate detect --model runs/small --train-data VOCdevkit/ --format voc --compare random",
    subjects=subjects,
    open_data=open_data,
    combine=combine,
    report=report,
    stoppable=True,
    table=table,
    page=page,
)
