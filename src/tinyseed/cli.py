"""The command line: `tinyseed VERB …`. It fills settings, calls the Python functions and prints what they return.

Exit codes: 0 done; 1 the run failed; 2 a wrong argument or input, in one line; 129, 130 and 143 stopped
by a signal, after saving what there was to save.
"""

import io
import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from tinyseed.arguments import UsageError, parse, parse_several, value_of, values_of, with_flags
from tinyseed.errors import InputError, RunError, first_line, references_as, remedy_of
from tinyseed.files import json_text
from tinyseed.settings.base import flag
from tinyseed.signals import AT_ONCE, Stopped, stop_request
from tinyseed.text import one_line, shown

if TYPE_CHECKING:
    from tinyseed.methods.base import MethodSpec
    from tinyseed.settings.train import TrainSettings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: how it is shown in the overview, an example, and what runs it."""

    shown: str
    about: str
    example: str
    run: Callable[[Sequence[str]], int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    # outside of any `except`: a failed run's processes and files are released before the interpreter ends
    sys.exit(_exit_code(sys.argv[1:] if arguments is None else arguments))


def _exit_code(arguments: Sequence[str]) -> int:
    """Run a command; what ends it becomes a line on the error stream, and an exit code."""
    _prepare_process()
    with stop_request(patient=False) as request:
        try:
            code = run(arguments)
            if sys.stdout is not None:  # it was closed before we began
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 141
        except Stopped as stopped:
            if str(stopped):
                _say(with_flags(stopped))
            return stopped.exit_code
        except KeyboardInterrupt:
            _say(AT_ONCE)
            return 130
        except Exception as error:
            if request.asked:  # what the signal interrupted has turned it into an error of its own
                return 128 + request.number
            line, code = _explained(error)
            if not line:
                raise
            _say(f"error: {line}")
        return code


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one line, and the exit code; an empty line for what is a fault of tinyseed."""
    remedy = remedy_of(error)
    if isinstance(error, InputError):
        return with_flags(error), 2
    if remedy is not None:
        return references_as(f"{first_line(error)}: {remedy}", flag), 1
    if isinstance(error, RunError | OSError):  # a full disk, a folder without permission, a vanished file
        return with_flags(error), 1
    return "", 1


def _prepare_process() -> None:
    """What the process needs that may be missing where it was started."""
    for standard in range(3):  # the first files to be opened must not become the standard streams
        try:
            os.fstat(standard)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names and our own dashes, in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS offers no limit, and then refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(arguments: Sequence[str]) -> int:
    """Run a verb; returns the exit code.

    Raises:
        InputError: an unknown verb, or wrong arguments.
        RunError: it failed.
        Stopped: a signal stopped it; it has saved.
    """
    match list(arguments):
        case [] | ["-h" | "--help"]:
            print(_overview(), end="")
        case ["--version"]:
            from importlib.metadata import version

            print(f"tinyseed {version('tinyseed')}")
        case [verb, *rest] if verb in VERBS:
            return VERBS[verb].run(rest)
        case [verb, *_]:
            raise UsageError(verb, f"give one of {', '.join(VERBS)}", argument="verb")
    return 0


def _overview() -> str:
    verbs = "\n".join(f"  {verb.shown:<19}{verb.about}" for verb in VERBS.values())
    return (
        f"{VERBS['distill'].example}\n\nTrain small vision models to reproduce big ones, without labels.\n\n"
        f"verbs:\n{verbs}\n\n"
        "tinyseed VERB --help shows an example and all flags, tinyseed --version the version.\n"
    )


def _distill(rest: Sequence[str]) -> int:
    from tinyseed.methods.catalog import distill_methods, find_methods
    from tinyseed.recipes import recipe_for

    known = distill_methods()
    specs = find_methods(values_of("--method", rest), known)
    commands = [spec.command for spec in specs]
    command = f"tinyseed {commands[0]}" if len(specs) == 1 else "tinyseed distill"
    settings = parse_several(
        {spec.name: spec.settings for spec in specs},
        rest,
        command=command,
        example=VERBS["distill"].example.replace("tinyseed distill", command),
        about=f"{specs[0].about}.",
        known={name: spec.about for name, spec in known.items()},
        others={name: spec.settings for name, spec in known.items()},
        defaults=recipe_for(value_of("--recipe", rest), commands),
    )
    return _train_students(settings) if isinstance(settings, dict) else _train(settings, specs[0])


def _pretrain(rest: Sequence[str]) -> int:
    from tinyseed.methods.catalog import find_method, pretrain_methods
    from tinyseed.recipes import recipe_for

    match list(rest):
        case [] | ["-h" | "--help"]:
            methods = "\n".join(f"  {name:<9}{spec.about}" for name, spec in pretrain_methods().items())
            print(f"{VERBS['pretrain'].example}\n\nmethods (tinyseed pretrain METHOD --help):\n{methods}")
            return 0
        case [method, *flags]:
            spec = _named("method", lambda: find_method(method, pretrain_methods()))
            settings = parse(
                spec.settings,
                flags,
                command=f"tinyseed {spec.command}",
                example=f"tinyseed pretrain {method} --data photos/ --backbone resnet50 --out runs/teacher",
                about=f"{spec.about}.",
                defaults=recipe_for(value_of("--recipe", flags), [spec.command]),
            )
            return _train(settings, spec)
    raise AssertionError


def _train(settings: "TrainSettings", spec: "MethodSpec") -> int:
    from tinyseed.engine.train import train

    train(settings)
    _show(settings.out / spec.model_file)
    _show(settings.out / "report.html")
    return 0


def _train_students(settings: "dict[str, TrainSettings]") -> int:
    """Train several students; returns 1 if one of them has failed."""
    from tinyseed.engine.runtime import is_first_process
    from tinyseed.engine.students import table
    from tinyseed.engine.train import train_students

    outcomes = train_students(settings)
    failed = {name: error for name, error in outcomes.items() if isinstance(error, RunError)}
    if is_first_process():
        _show(table(settings, outcomes))
        for name, error in failed.items():
            _say(f"error: {name}: {with_flags(error)}")
    return 1 if failed else 0


def _evaluate(rest: Sequence[str]) -> int:
    from tinyseed.evaluations import EVALUATIONS, find_evaluation
    from tinyseed.recipes import settings_of

    match list(rest):
        case [] | ["-h" | "--help"]:
            names = "\n".join(f"  {spec.name:<11}{spec.about}" for spec in EVALUATIONS)
            print(f"{VERBS['evaluate'].example}\n\nevaluations (tinyseed evaluate NAME --help):\n{names}")
            return 0
        case [name, *flags]:
            spec = _named("evaluation", lambda: find_evaluation(name))
            command = f"tinyseed evaluate {name}"
            recipe = value_of("--recipe", flags) if hasattr(spec.settings, "recipe") else None
            settings = parse(
                spec.settings,
                flags,
                command=command,
                example=spec.example,
                about=spec.about,
                defaults={} if recipe is None else settings_of(recipe, f"evaluate {name}"),
            )
            if getattr(settings, "export_detectron2", None) is not None:
                from tinyseed import api

                _show(api.export_detectron2(settings.model, settings.export_detectron2))
                return 0
            from tinyseed.evaluation.report import table
            from tinyseed.evaluation.run import evaluate

            report = evaluate(spec, settings)
            _show(references_as((spec.table or table)(report), flag))
            return 0
    raise AssertionError


def _recipes(rest: Sequence[str]) -> int:
    from tinyseed import recipes
    from tinyseed.studies import catalog as studies

    match list(rest):
        case [] | ["-h" | "--help"]:
            print(f"{VERBS['recipes'].example}\n\n{recipes.listing()}\n\n{studies.listing()}")
        case ["run", *flags]:
            return _run_study(flags)
        case [name] if name in {study.name for study in studies.STUDIES}:
            print(studies.sheet(studies.find_study(name)))
        case [name]:
            print(_named("recipe", lambda: recipes.sheet(name)))
        case [_, more, *_]:
            raise UsageError(more, "give one name at a time", argument="recipe")
    return 0


def _run_study(rest: Sequence[str]) -> int:
    """`tinyseed recipes run NAME`; returns 1 if a cell has failed."""
    from tinyseed.studies import catalog
    from tinyseed.studies.settings import StudySettings

    example = "tinyseed recipes run paper-strategies --data train/ --test-data test/ --teacher runs/teacher --out table"
    if not rest or rest[0] in ("-h", "--help"):
        print(f"{example}\n\nstudies (tinyseed recipes run NAME --help):\n\n{catalog.listing()}")
        return 0
    name, *flags = rest
    study = _named("study", lambda: catalog.find_study(name))
    command = f"tinyseed recipes run {name}"
    settings = parse(StudySettings, flags, command=command, example=example, about=f"{study.about}.")
    if settings.dry_run:
        from tinyseed.studies.cells import Plan
        from tinyseed.studies.describe import describe

        _show(describe(Plan.of(study, settings)))
        return 0
    from tinyseed.studies.results import text
    from tinyseed.studies.run import run_study

    results = run_study(study, settings)
    _show(text(results))
    _show(settings.out / "results.md")
    return 1 if results.failed else 0


def _teachers(rest: Sequence[str]) -> int:
    example = VERBS["teachers"].example
    match list(rest):
        case [] | ["-h" | "--help"]:
            print(f"{example}\n\nShows what a checkpoint file, folder, URL or model name is.\n")
            print("flags:\n  --json                print JSON")
            print("  --teacher-arch NAME   architecture of a file that does not state it (docs/teachers.md)")
            print("  --teacher-prefix NAME part of a file, by what its tensors' names begin with")
            print(
                "  --teacher-output …    head or backbone, where the file does not say which layers are a head"
            )
            return 0
        case [spec, *flags] if not spec.startswith("-"):
            from tinyseed.teachers import TeachersSettings, describe, table

            command, about = "tinyseed teachers FILE", "Show what a file, folder, URL or model name is."
            settings = parse(TeachersSettings, flags, command=command, example=example, about=about)
            described = _named("FILE", lambda: describe(spec, settings))
            _show(json_text(described.as_json(), indent=2) if settings.json else table(described))
            return 0
        case [typed, *_]:
            raise UsageError("given", f"the file comes first: {example} {typed}", argument=typed)
    raise AssertionError


def _cache(rest: Sequence[str]) -> int:
    from tinyseed import caches

    example = VERBS["cache"].example
    match list(rest):
        case ["free", *given]:
            names = list(takewhile(lambda typed: not typed.startswith("-"), given))
            wanted = parse(
                caches.FreeSettings,
                given[len(names) :],
                command="tinyseed cache free NAME…",
                example="tinyseed cache free --older-than 30",
                about="Free what is kept on disk between runs: by the names that `tinyseed cache` lists, or by age.",
            )
            wanted.check()
            _show(caches.freed(_named("NAME", lambda: caches.free(names, wanted))))
        case given:
            folder = given[0] if given and not given[0].startswith("-") else None
            settings = parse(
                caches.CacheSettings,
                given if folder is None else given[1:],
                command="tinyseed cache [FOLDER]",
                example=example,
                about="List what is kept on disk between runs. tinyseed cache free NAME… frees it.",
            )
            listed = _named("FOLDER", lambda: caches.entries(folder))
            _show(json_text(caches.as_json(listed), indent=2) if settings.json else caches.table(listed))
    return 0


def _demo(rest: Sequence[str]) -> int:
    from tinyseed.settings.demo import DemoSettings

    about = "Distill a small student from a teacher, on photos that are bundled with tinyseed, and show the result."
    example = VERBS["demo"].example
    settings = parse(DemoSettings, rest, command="tinyseed demo", example=example, about=about)
    from tinyseed.demo import demo

    demo(settings)
    return 0


def _named(positional: str, call: Callable[[], Result]) -> Result:
    """What a call returns; its errors name the positional argument, which is not a flag."""
    try:
        return call()
    except InputError as error:
        if error.argument not in (None, positional):
            raise
        raise UsageError(error.value, error.remedy, argument=positional) from error


def _show(result: object) -> None:
    print(shown(str(result), keep="\n"))


def _say(line: str) -> None:
    print(f"tinyseed: {one_line(line)}", file=sys.stderr)


VERBS = {
    "distill": Verb(
        "distill",
        "train a small student to reproduce a big teacher's representation",
        "tinyseed distill --data photos/ --teacher runs/teacher --student resnet18 --out runs/small",
        _distill,
    ),
    "pretrain": Verb(
        "pretrain METHOD",
        "train a network without labels or teacher: moco-v1, moco-v2, simclr or swav",
        "tinyseed pretrain moco-v2 --data photos/ --backbone resnet50 --out runs/teacher",
        _pretrain,
    ),
    "evaluate": Verb(
        "evaluate NAME",
        "measure a model: knn, linear, semi, transfer, retention or detect",
        "tinyseed evaluate knn --model runs/small --train-data train/ --test-data test/",
        _evaluate,
    ),
    "recipes": Verb(
        "recipes [NAME]",
        "settings of published runs by name, for --recipe NAME; recipes run NAME makes a paper's table",
        "tinyseed recipes simclr-imagenet",
        _recipes,
    ),
    "teachers": Verb(
        "teachers FILE",
        "show what a checkpoint is, and how it is used as a teacher",
        "tinyseed teachers moco_v2_800ep_pretrain.pth.tar",
        _teachers,
    ),
    "cache": Verb(
        "cache [free NAME…]",
        "list what is kept on disk between runs, and free it",
        "tinyseed cache",
        _cache,
    ),
    "demo": Verb(
        "demo",
        "see it work in a few minutes, on bundled photos",
        "tinyseed demo",
        _demo,
    ),
}


if __name__ == "__main__":
    main()
