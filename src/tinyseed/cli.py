"""The command line: `tinyseed VERB …`. Fills settings and calls the Python functions; imports api and demo when needed.

Exit codes: 0 done; 1 the run failed; 2 a wrong argument or input, told in one line; 130 and 143 stopped after saving.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyseed.arguments import parse
from tinyseed.errors import InputError, RunError

if TYPE_CHECKING:
    from tinyseed.engine.config import RunConfig

OVERVIEW = """\
tinyseed distill --data photos/ --teacher runs/teacher --student resnet18 --out runs/r18

Grows small vision models from big ones, without labels.

verbs:
  demo               see it work in a few minutes, on photos that come with tinyseed
  distill            train a small student to see as a big teacher does
  pretrain moco-v2   train a teacher by itself
  evaluate knn       is a model any good? k-NN on labelled images (also: linear, semi, transfer, retention)

tinyseed VERB --help shows an example and every flag; tinyseed --version the version.
"""

EXAMPLES = {
    "distill": "tinyseed distill --data photos/ --teacher runs/teacher --student resnet18 --out runs/small",
    "pretrain": "tinyseed pretrain moco-v2 --data photos/ --backbone resnet50 --out runs/teacher",
    "evaluate": "tinyseed evaluate knn --model runs/small --train-data train/ --test-data test/",
    "demo": "tinyseed demo",
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


def run(arguments: Sequence[str]) -> int:
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
        case ["demo", *rest]:
            return _demo(rest)
        case [verb, *_]:
            raise InputError("verb", verb, f"give one of {', '.join(EXAMPLES)}")
    raise AssertionError


def _distill(rest: Sequence[str]) -> int:
    from tinyseed.engine.config import DistillConfig

    about = "Train a small student on unlabelled images to see as a frozen teacher does (SEED)."
    config = parse(DistillConfig, rest, command="tinyseed distill", example=EXAMPLES["distill"], about=about)
    return _train(config)


def _pretrain(rest: Sequence[str]) -> int:
    match list(rest):
        case ["moco-v2", *rest]:
            from tinyseed.engine.config import PretrainMoCoConfig

            about = "Train a network by itself on unlabelled images (MoCo-v2): a teacher, or a baseline."
            command = "tinyseed pretrain moco-v2"
            return _train(
                parse(PretrainMoCoConfig, rest, command=command, example=EXAMPLES["pretrain"], about=about)
            )
        case [] | ["-h" | "--help"]:
            print(f"{EXAMPLES['pretrain']}\n\nmethods: moco-v2 (tinyseed pretrain moco-v2 --help)")
            return 0
        case [method, *_]:
            raise InputError("method", method, "give moco-v2")
    raise AssertionError


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
        case [] | ["-h" | "--help"]:
            from tinyseed.evaluation.choose import names

            print(f"{EXAMPLES['evaluate']}\n\nevaluations: {names()} (tinyseed evaluate knn --help)")
            return 0
        case [name, *rest]:
            from tinyseed.evaluation.choose import find_evaluation

            evaluation = find_evaluation(name)
            config = parse(
                evaluation.config,
                rest,
                command=f"tinyseed evaluate {name}",
                example=evaluation.example,
                about=evaluation.about,
            )
            print(evaluation.table(evaluation.run(config)))
            return 0
    raise AssertionError


def _demo(rest: Sequence[str]) -> int:
    from tinyseed.demo import DemoConfig, demo
    from tinyseed.engine.signals import Stopped

    about = "Pre-train a teacher on photos that come with tinyseed, distil a small student from it, and show the proof."
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
