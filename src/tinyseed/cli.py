"""The command line: `tinyseed VERB …`. Fills settings and calls the Python functions; imports api and demo when needed.

Exit codes: 0 done; 1 the run failed; 2 a wrong argument or input, told in one line; 130 and 143 stopped after saving.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyseed.arguments import parse, value_of
from tinyseed.errors import InputError, RunError, argument

if TYPE_CHECKING:
    from typing import TypeVar

    from tinyseed.engine.config import RunConfig, TrainConfig

    Training = TypeVar("Training", bound=TrainConfig)

OVERVIEW = """\
tinyseed distill --data photos/ --teacher runs/teacher --student resnet18 --out runs/r18

Grows small vision models from big ones, without labels.

verbs:
  demo               see it work in a few minutes, on photos that come with tinyseed
  distill            train a small student to see as a big teacher does
  pretrain METHOD    train a network by itself: moco-v1, moco-v2, simclr or swav
  evaluate NAME      is a model any good? knn, linear, semi, transfer, retention or detect
  recipes            settings of published runs by name, for --recipe NAME
  teachers FILE      what a checkpoint is, and how it is used as a teacher

tinyseed VERB --help shows an example and every flag; tinyseed --version the version.
"""

EXAMPLES = {
    "distill": "tinyseed distill --data photos/ --teacher runs/teacher --student resnet18 --out runs/small",
    "pretrain": "tinyseed pretrain moco-v2 --data photos/ --backbone resnet50 --out runs/teacher",
    "evaluate": "tinyseed evaluate knn --model runs/small --train-data train/ --test-data test/",
    "recipes": "tinyseed recipes simclr-imagenet",
    "teachers": "tinyseed teachers moco_v2_800ep_pretrain.pth.tar",
    "demo": "tinyseed demo",
}

METHODS = {
    "moco-v1": "MoCo: views agree against a queue of keys from a momentum encoder; linear head",
    "moco-v2": "MoCo with an MLP head, stronger augmentation and a cosine schedule; good on small machines",
    "simclr": "SimCLR: views agree against the rest of the batch; wants large batches",
    "swav": "SwAV: the cluster of one crop is predicted from the other crops",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(run(arguments))
    except InputError as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except (
        RunError,
        OSError,
    ) as error:  # OSError: a full disk, a folder without rights, a file that has gone
        _tell(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _tell("stopped at once; nothing was saved since the last checkpoint")
        sys.exit(130)


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911  (a return a verb)
    """Choose the verb; returns the exit code.

    Raises:
        InputError: no such verb, or its arguments are wrong.
        RunError: it failed.
    """
    match list(arguments):
        case [] | ["-h" | "--help"]:
            print(OVERVIEW, end="")
            return 0
        case ["--version"]:
            from importlib.metadata import version

            print(f"tinyseed {version('tinyseed')}")
            return 0
        case ["distill", *rest]:
            return _distill(rest)
        case ["pretrain", *rest]:
            return _pretrain(rest)
        case ["evaluate", *rest]:
            return _evaluate(rest)
        case ["recipes", *rest]:
            return _recipes(rest)
        case ["teachers", *rest]:
            return _teachers(rest)
        case ["demo", *rest]:
            return _demo(rest)
        case [verb, *_]:
            raise InputError("verb", verb, f"give one of {', '.join(EXAMPLES)}")
    raise AssertionError


def _distill(rest: Sequence[str]) -> int:
    from tinyseed.engine.config import DistillConfig

    about = "Train a small student on unlabelled images to see as a frozen teacher does (SEED)."
    return _train(_parsed(DistillConfig, rest, "distill", EXAMPLES["distill"], about))


def _pretrain(rest: Sequence[str]) -> int:
    match list(rest):
        case [] | ["-h" | "--help"]:
            methods = "\n".join(f"  {name:<9}{about}" for name, about in METHODS.items())
            print(f"{EXAMPLES['pretrain']}\n\nmethods (tinyseed pretrain METHOD --help):\n{methods}")
            return 0
        case [method, *_] if method not in METHODS:
            raise InputError("method", method, f"give one of {', '.join(METHODS)}")
        case [method, *rest]:
            from tinyseed.api import PRETRAIN_METHODS

            example = f"tinyseed pretrain {method} --data photos/ --backbone resnet50 --out runs/teacher"
            about = f"Train a network by itself on unlabelled images: a teacher, or a baseline. {METHODS[method]}."
            return _train(_parsed(PRETRAIN_METHODS[method], rest, f"pretrain {method}", example, about))
    raise AssertionError


def _parsed(
    settings: "type[Training]", rest: Sequence[str], verb: str, example: str, about: str
) -> "Training":
    """Settings of a training run from the flags; `--recipe NAME` gives the defaults."""
    from tinyseed.recipes import settings_of

    name = value_of("--recipe", rest)
    defaults = {} if name is None else settings_of(name, verb)
    return parse(settings, rest, command=f"tinyseed {verb}", example=example, about=about, defaults=defaults)


def _recipes(rest: Sequence[str]) -> int:
    from tinyseed import recipes

    match list(rest):
        case [] | ["-h" | "--help"]:
            print(f"{EXAMPLES['recipes']}\n\n{recipes.listing()}")
        case [name]:
            print(recipes.sheet(name))
        case [_, more, *_]:
            raise InputError("recipe", more, "give one name at a time")
    return 0


def _train(config: "RunConfig") -> int:
    from tinyseed import api
    from tinyseed.engine.config import DistillConfig
    from tinyseed.engine.signals import Stopped

    try:
        api.run(config)
    except Stopped as stopped:
        _tell(str(stopped))
        return stopped.exit_code
    model = "student" if isinstance(config, DistillConfig) else "encoder"
    print(f"{config.out / model}.safetensors\n{config.out / 'report.html'}")
    return 0


def _evaluate(rest: Sequence[str]) -> int:
    match list(rest):
        case ["detect", *rest]:
            return _evaluate_detect(rest)
        case [] | ["-h" | "--help"]:
            from tinyseed.evaluation.catalog import EVALUATIONS

            names = ", ".join(spec.name for spec in EVALUATIONS)
            print(f"{EXAMPLES['evaluate']}\n\nevaluations: {names}, detect (tinyseed evaluate knn --help)")
            return 0
        case [name, *rest]:
            from tinyseed.evaluation.catalog import find_evaluation

            evaluation = find_evaluation(name)
            config = parse(
                evaluation.settings,
                rest,
                command=f"tinyseed evaluate {name}",
                example=evaluation.example,
                about=evaluation.about,
            )
            from tinyseed.evaluation.report import show
            from tinyseed.evaluation.run import evaluate

            report = evaluate(evaluation, config)
            assert report is not None
            print(show(evaluation, report))
            return 0
    raise AssertionError


def _teachers(rest: Sequence[str]) -> int:
    match list(rest):
        case [] | ["-h" | "--help"]:
            print(f"{EXAMPLES['teachers']}\n\nSays what a file, folder, URL or name is.\n")
            print("flags: --json, --teacher-arch NAME (docs/teachers.md)")
            return 0
        case [spec, *flags] if not spec.startswith("-"):
            from tinyseed.teachers import TeachersConfig, describe_teacher, table

            command, about = "tinyseed teachers FILE", "Say what a file, folder, URL or model's name is."
            config = parse(TeachersConfig, flags, command=command, example=EXAMPLES["teachers"], about=about)
            described = describe_teacher(spec, arch=config.teacher_arch)
            print(json.dumps(described.as_json(), indent=2) if config.json else table(described))
            return 0
        case [flag, *_]:
            raise InputError(flag, "given", f"the file comes first: {EXAMPLES['teachers']} {flag}")
    raise AssertionError


def _evaluate_detect(rest: Sequence[str]) -> int:
    from tinyseed import api
    from tinyseed.detection.evaluate import SPEC
    from tinyseed.engine.signals import Stopped
    from tinyseed.evaluation.report import show

    config = parse(
        SPEC.settings, rest, command="tinyseed evaluate detect", example=SPEC.example, about=SPEC.about
    )
    if config.export_detectron2 is not None:
        with argument(path="export_detectron2"):
            print(api.export_detectron2(config.model, config.export_detectron2))
        return 0
    try:
        print(show(SPEC, api.run_detect(config)))
    except Stopped as stopped:
        _tell(str(stopped))
        return stopped.exit_code
    return 0


def _demo(rest: Sequence[str]) -> int:
    from tinyseed.demo import DemoConfig, demo
    from tinyseed.engine.signals import Stopped

    about = (
        "Distil a small student from a teacher, on photos that all come with tinyseed, and show the proof."
    )
    config = parse(DemoConfig, rest, command="tinyseed demo", example=EXAMPLES["demo"], about=about)
    try:
        demo(config)
    except Stopped as stopped:
        _tell("stopped")
        return stopped.exit_code
    return 0


def _tell(line: str) -> None:
    print(f"tinyseed: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
