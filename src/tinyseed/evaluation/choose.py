"""The evaluations by name: settings, what runs them, and how they are told. Imports this room when one is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tinyseed.errors import InputError

Name = Literal["knn", "linear", "semi", "transfer", "retention"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        config: its settings, a dataclass.
        run: from settings to a report.
        table: the report for a terminal.
        about: what it answers, in a sentence.
        example: a command line.
    """

    config: type[Any]
    run: Callable[[Any], Any]
    table: Callable[[Any], str]
    about: str
    example: str


def names() -> str:
    """Every evaluation's name, for people."""
    return ", ".join(get_args(Name))


def find_evaluation(name: str) -> Evaluation:
    """The evaluation of this name.

    Raises:
        InputError: there is none.
    """
    match name:
        case "knn":
            from tinyseed.evaluation import command

            about = (
                "Weighted k-NN on frozen features: how well do a labelled image's neighbours tell its class?"
            )
            return Evaluation(command.KnnConfig, command.run_knn, command.table, about, _example(name))
        case "linear":
            from tinyseed.evaluation import linear, reporting

            about = "Linear probe: how well does a linear layer on frozen features tell the class?"
            return Evaluation(linear.LinearConfig, linear.run, reporting.table, about, _example(name))
        case "semi":
            from tinyseed.evaluation import reporting, semi

            about = "Fine-tuning on a few labels (1 % and 10 %): how far does a model get with them?"
            return Evaluation(
                semi.SemiConfig, semi.run, reporting.table, about, _example(name, " --fraction 0.01 0.1")
            )
        case "transfer":
            from tinyseed.evaluation import reporting, transfer

            about = "Transfer: what is the trunk worth on another data set, frozen or fine-tuned?"
            return Evaluation(
                transfer.TransferConfig,
                transfer.run,
                reporting.table,
                about,
                _example(name, " --mode finetune"),
            )
        case "retention":
            from tinyseed.evaluation import retention

            about = (
                "Retention: how much of the teacher does the student keep, and what does each cost to run?"
            )
            example = (
                "tinyseed evaluate retention --student runs/small --teacher runs/teacher "
                "--train-data train/ --test-data test/"
            )
            return Evaluation(retention.RetentionConfig, retention.run, retention.table, about, example)
        case _:
            raise InputError("evaluation", name, f"give {names()}")


def _example(name: str, more: str = "") -> str:
    return f"tinyseed evaluate {name} --model runs/small --train-data train/ --test-data test/{more}"
