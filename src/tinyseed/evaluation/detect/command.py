"""`evaluate detect` as a whole: train from each start point, test, write down. Imports models and data."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinyseed.checkpoints.load import load_model, random_init
from tinyseed.errors import InputError, argument
from tinyseed.evaluation.detect.batches import Sizes, trainable
from tinyseed.evaluation.detect.coco import read_coco
from tinyseed.evaluation.detect.config import (
    DEFAULT_SPLITS,
    RANDOM_TWIN,
    DetectConfig,
    DetectReport,
    DetectResult,
    check,
    out_folder,
)
from tinyseed.evaluation.detect.masks import require_pycocotools
from tinyseed.evaluation.detect.network import build_detector
from tinyseed.evaluation.detect.page import markdown
from tinyseed.evaluation.detect.progress import Progress
from tinyseed.evaluation.detect.scenes import SceneSet
from tinyseed.evaluation.detect.score import Precision, average_precision, detect
from tinyseed.evaluation.detect.train import REFERENCE_BATCH, Plan, Trained, run_key, schedule_steps, train
from tinyseed.evaluation.detect.voc import read_voc
from tinyseed.files import write_text
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import RANDOM, ModelSpec
from tinyseed.models.teacher import weights_digest
from tinyseed.precision import autocast_dtype

Stop = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class _Task:
    """What all start points share."""

    config: DetectConfig
    plan: Plan
    train: SceneSet
    test: SceneSet
    folder: Path
    device: torch.device
    autocast: torch.dtype | None
    progress: Progress


def evaluate_detect(
    config: DetectConfig, *, stop: Stop = lambda: False, quiet: bool = False
) -> DetectReport | None:
    """Train a detector from each start point, score it on the test images, write evaluate-detect.json and .md.

    A start point that was finished before with the same settings is not trained again; one that was stopped goes on.

    Args:
        config: see `DetectConfig`.
        stop: asked after each step.
        quiet: no progress.

    Returns:
        None where it was stopped; the same call goes on.

    Raises:
        InputError: a setting, path, model or annotation is wrong.
        RunError: training failed, or a file could not be written.
    """
    check(config)
    require_pycocotools()
    folder = out_folder(config)
    starts = [(spec, _load(config, spec)) for spec in (config.model, *config.compare)]
    for spec, encoder in starts:  # all told before the first is trained
        build_detector(encoder, 1, masks=False, norm=config.norm, seed=0, width=1, field=_field(config, spec))
    task = _task(config, folder, Progress(quiet=quiet))
    for line in _warnings(config):
        task.progress.say(line)
    results, unreadable = [], 0
    for spec, encoder in starts:
        found = _run(task, spec, encoder, stop)
        if found is None:
            return None
        result, failed = found
        results.append(result)
        unreadable = max(unreadable, failed)
    report = _report(task, tuple(results), unreadable)
    _write(folder / "evaluate-detect.json", json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    _write(folder / "evaluate-detect.md", markdown(report))
    return report


def _load(config: DetectConfig, spec: str) -> Encoder:
    if spec != RANDOM_TWIN:
        with argument(_field(config, spec).removeprefix("--")):
            return load_model(ModelSpec(spec, seed=config.seed))
    return random_init(load_model(ModelSpec(config.model, seed=config.seed)), config.seed)


def _field(config: DetectConfig, spec: str) -> str:
    return "--model" if spec == config.model else "--compare"


def _task(config: DetectConfig, folder: Path, progress: Progress) -> _Task:
    assert config.format is not None
    sizes = Sizes(config.image_size)
    progress.say("reading annotations")
    sides = _read(config)
    for side in sides:
        for line in side.left_out.lines():
            progress.say(f"{'train' if side is sides[0] else 'test'}: {line}")
    plan = Plan(
        schedule_steps(config.schedule, config.format, config.batch_size),
        config.lr * config.batch_size / REFERENCE_BATCH,
        config.batch_size,
        sizes,
        config.seed,
        config.masks,
        _workers(config),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _Task(config, plan, *sides, folder, device, autocast_dtype("auto", device), progress)


def _read(config: DetectConfig) -> tuple[SceneSet, SceneSet]:
    assert config.format is not None
    default_train, default_test = DEFAULT_SPLITS[config.format]
    splits = (config.train_split or default_train, config.test_split or default_test)
    test_data, test_flag = (
        (config.test_data, "--test-data") if config.test_data else (config.train_data, "--train-data")
    )
    if config.format == "voc":
        first = read_voc(config.train_data, splits[0], "--train-data", limit=config.limit)
        second = read_voc(test_data, splits[1], test_flag, classes=first.classes, limit=config.limit)
    else:
        settings: dict[str, Any] = {"limit": config.limit, "masks": config.masks}
        first = read_coco(config.train_data[0], splits[0], "--train-data", **settings)
        second = read_coco(test_data[0], splits[1], test_flag, classes=first.classes, **settings)
    if not trainable(first.scenes):
        raise InputError(
            "--train-data", " ".join(config.train_data), f"split {splits[0]} has no box to learn from"
        )
    if not second.boxes:
        raise InputError(test_flag, " ".join(test_data), f"split {splits[1]} has no box to find")
    return first, second


def _workers(config: DetectConfig) -> int:
    """Two cores are for the network; of more, half decode, up to eight."""
    if config.workers != "auto":
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores // 2)


def _run(task: _Task, spec: str, encoder: Encoder, stop: Stop) -> tuple[DetectResult, int] | None:
    """One start point: finished before, or trained and scored now; and how many test images were unreadable."""
    config, plan = task.config, task.plan
    learned = dataclasses.replace(plan, workers=0)
    digest = weights_digest(encoder.backbone.network.state_dict())
    data = (task.train.classes, task.train.scenes, task.test.scenes)
    key = run_key(digest, encoder.input, learned, config.norm, str(task.autocast), *data)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", spec).strip("-")[-40:]
    done = task.folder / "detect" / f"{name}-{key}.json"
    if done.is_file():
        task.progress.say(f"{spec}: finished before ({done})")
        return _read_result(done)
    classes = task.train.classes
    detector = build_detector(
        encoder, len(classes), masks=config.masks, norm=config.norm, seed=config.seed, autocast=task.autocast
    ).to(task.device)
    task.progress.begin(f"{spec}: training")
    checkpoint = done.with_suffix(".ckpt")
    scenes = trainable(task.train.scenes)
    trained = train(detector, scenes, plan, checkpoint=checkpoint, key=key, progress=task.progress, stop=stop)
    if trained is None:
        return None
    scored = _score(task, spec, detector, stop)
    if scored is None:
        return None
    result = _result(spec, encoder, scored[:2], trained)
    _write(done, json.dumps({"result": dataclasses.asdict(result), "unreadable": scored[2]}, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return result, scored[2]


def _score(
    task: _Task, spec: str, detector: torch.nn.Module, stop: Stop
) -> tuple[Precision, Precision | None, int] | None:
    task.progress.begin(f"{spec}: testing")
    masks, scenes, classes = task.config.masks, task.test.scenes, task.train.classes
    found = detect(
        detector,
        scenes,
        task.plan.sizes,
        batch_size=task.plan.batch_size,
        masks=masks,
        progress=task.progress,
        stop=stop,
    )
    if found is None:
        return None
    detections, unreadable = found
    box = average_precision(scenes, classes, detections, "bbox")
    mask = average_precision(scenes, classes, detections, "segm") if masks else None
    return box, mask, unreadable


def _result(
    spec: str, encoder: Encoder, scored: tuple[Precision, Precision | None], trained: Trained
) -> DetectResult:
    count = max(1, len(trained.losses) // 20)
    first, last = (sum(part) / count for part in (trained.losses[:count], trained.losses[-count:]))
    return DetectResult(spec, encoder.backbone.name, *scored, first, last, round(trained.seconds, 1))


def _read_result(path: Path) -> tuple[DetectResult, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        given = content["result"]
        parts = {name: None if given[name] is None else Precision(**given[name]) for name in ("box", "mask")}
        return DetectResult(**(given | parts)), int(content["unreadable"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "--out", path, "is no result of evaluate detect; delete it to train again"
        ) from error


def _warnings(config: DetectConfig) -> list[str]:
    """What makes the figures mean less than they seem to."""
    untrained = [
        spec for spec in (config.model, *config.compare) if spec == RANDOM_TWIN or spec.startswith(RANDOM)
    ]
    if config.norm == "trained" or not untrained:
        return []
    why = "its frozen batch norms keep the scale 0 that many libraries begin residual branches with"
    return [f"{spec}: {why}; compare with --norm trained" for spec in untrained]


def _report(task: _Task, results: tuple[DetectResult, ...], unreadable: int) -> DetectReport:
    config, plan = task.config, task.plan
    assert config.format is not None
    told = [f"train: {line}" for line in task.train.left_out.lines()]
    told += [f"test: {line}" for line in task.test.left_out.lines()]
    unread = (
        [f"test: {unreadable} images could not be decoded and count as nothing found"] if unreadable else []
    )
    return DetectReport(
        model=config.model,
        format=config.format,
        train_images=len(trainable(task.train.scenes)),
        train_boxes=task.train.boxes,
        test_images=len(task.test.scenes),
        test_boxes=task.test.boxes,
        unreadable_images=unreadable,
        classes=task.train.classes,
        notes=(*told, *unread, *_warnings(config)),
        schedule=str(config.schedule),
        steps=plan.steps,
        batch_size=plan.batch_size,
        lr=plan.peak,
        norm=config.norm,
        image_size=config.image_size,
        masks=config.masks,
        seed=config.seed,
        results=results,
    )


def _write(path: Path, content: str) -> None:
    write_text(path, content)
