"""Teachers that were loaded before: what is known of them is kept, and their weights are loaded when they are needed.

A run whose teacher's vectors are all in caches needs its digest, the images that it expects and the lengths of its
outputs, but never its weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch

from tinyseed.checkpoints.huggingface import PREFIX
from tinyseed.checkpoints.load import load_teacher, path_of
from tinyseed.checkpoints.remote import is_url, local_file
from tinyseed.errors import RunError, argument
from tinyseed.files import cache_folder, digest, read_json, write_json
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import RANDOM, ModelSpec
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import TeacherOutput
from tinyseed.shapes import Features, Images

FORMAT = 2
"""Counts up whenever something else is known of a teacher."""

FOLDER = "teachers"
"""Where it is kept in the cache folder."""

_PACKAGES = ("tinyseed", "torch", "torchvision", "timm", "transformers")
_MOST_FILES = 200
_BESIDE = frozenset({".json", ".safetensors", ".bin"})
"""Endings of files that are read together with the file that was given."""


class DeferredTeacher(Teacher):
    """A teacher that is known, and is loaded when it is first called."""

    def __init__(self, facts: Mapping[str, Any], load: Callable[[], Teacher]) -> None:
        self.spec = str(facts["spec"])
        self.digest = str(facts["digest"])
        self.architecture = str(facts["architecture"])
        self.dim, self.width = int(facts["dim"]), int(facts["width"])
        self.parameters_count = int(facts["parameters_count"])
        self.gives = _outputs(facts["gives"])
        self.input = _contract(facts["input"])
        self.mean, self.std = self.input.mean, self.input.std
        self.engine, self.agreement = "torch", {}
        self.sides = {str(side): bool(takes) for side, takes in facts.get("takes", {}).items()}
        self.remember = None
        self._compute = _Deferred(self)
        self._load = load
        self._loaded: Teacher | None = None
        self._wishes: list[Callable[[Teacher], object]] = []

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._loaded is not None

    def to(self, device: torch.device | str) -> Teacher:
        """Move to a device, at once or when it is loaded; returns the same teacher."""
        return self._wish(lambda teacher: teacher.to(device))

    def channels_last(self) -> Teacher:
        """Lay the weights out for images in channels-last memory; returns the same teacher."""
        return self._wish(lambda teacher: teacher.channels_last())

    def _wish(self, wish: Callable[[Teacher], object]) -> Teacher:
        if self._loaded is None:
            self._wishes.append(wish)
        else:
            wish(self._loaded)
        return self

    def load(self) -> Teacher:
        """The teacher itself, loaded now unless it is already there.

        Raises:
            RunError: its weights have changed since it was known.
        """
        if self._loaded is None:
            with _as_outside_of_a_step():
                loaded = self._load()
            if loaded.digest != self.digest:
                why = f"the weights of {self.spec} are not those that were there when the run was set up"
                raise RunError(f"{why}; start it again")
            for wish in self._wishes:
                wish(loaded)
            self._loaded = loaded
        return self._loaded

    def _network(self) -> Encoder:
        return self.load()._network()


class _Deferred:
    """Torch's engine of a teacher that is loaded when it is first called."""

    key = ""

    def __init__(self, teacher: DeferredTeacher) -> None:
        self._teacher = teacher

    def __call__(self, images: Images) -> Features:
        """Features [n, f]."""
        return self._teacher.load().compute(images)


def known_teacher(spec: ModelSpec) -> Teacher:
    """The teacher that `load_teacher` gives; one that was loaded before is loaded when its weights are needed.

    Raises:
        InputError: as `load_teacher`.
    """
    path = _facts_at(spec)
    if path is None:
        return load_teacher(spec)

    def noted(teacher: Teacher) -> Teacher:
        with suppress(RunError):  # a full cache costs the next run some time, and this one nothing
            write_json(path, _facts(teacher))
        return teacher

    try:
        teacher = DeferredTeacher(read_json(path) or {}, lambda: noted(load_teacher(spec)))
    except (ValueError, KeyError, TypeError, AttributeError):
        teacher = noted(load_teacher(spec))
    teacher.remember = lambda: noted(teacher)
    return teacher


def _facts(teacher: Teacher) -> dict[str, Any]:
    return {
        "spec": teacher.spec,
        "digest": teacher.digest,
        "architecture": teacher.architecture,
        "dim": teacher.dim,
        "width": teacher.width,
        "parameters_count": teacher.parameters_count,
        "gives": teacher.gives,
        "input": dataclasses.asdict(teacher.input),
        "takes": teacher.sides,
    }


def _outputs(names: list[str]) -> tuple[TeacherOutput, ...]:
    return tuple(output for output in get_args(TeacherOutput) if output in names)


def _contract(fields: Mapping[str, Any]) -> InputContract:
    lists: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return InputContract(**lists)


def _facts_at(spec: ModelSpec) -> Path | None:
    """Where it is kept what is known of a teacher; None where its files cannot be recognized."""
    if spec.weights != "random" and not str(spec.name).startswith(RANDOM):
        spec = dataclasses.replace(spec, seed=None)  # nothing of it is random
    given = [(field.name, repr(getattr(spec, field.name))) for field in dataclasses.fields(spec)]
    try:
        files = sorted(_files(spec))
    except OSError:
        return None
    if len(files) > _MOST_FILES:
        return None
    name = digest("teacher", FORMAT, given, [(str(file), *_stamp(file)) for file in files], _versions())
    return cache_folder() / FOLDER / f"{name}.json"


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _files(spec: ModelSpec) -> Iterator[Path]:
    """The files that a teacher is loaded from; those of a library's pre-trained weights are left out.

    Raises:
        InputError: a file cannot be downloaded.
        OSError: a file is missing or cannot be read; `load_teacher` says so in its own words.
    """
    text = str(spec.name)
    if text.startswith(PREFIX):
        folder = Path(text.removeprefix(PREFIX)).expanduser()
        yield from _of_path(folder) if folder.exists() else ()
    else:
        path = path_of(text)
        yield from () if path is None else _of_path(path)
    weights = str(spec.weights)
    if spec.weights is not None and weights != "random":
        with argument("weights"):
            file = local_file(weights) if is_url(weights) else Path(weights).expanduser()
        yield from _of_path(file)


def _of_path(path: Path) -> Iterator[Path]:
    path = path.resolve(strict=True)
    if path.is_dir():
        yield from (file for file in path.iterdir() if file.suffix in _BESIDE and file.is_file())
        return
    yield path
    beside = (file for file in path.parent.iterdir() if file.suffix in _BESIDE and file.is_file())
    yield from (file for file in beside if file != path)


@cache
def _versions() -> tuple[str, ...]:
    found = []
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return tuple(found)


def _as_outside_of_a_step() -> ExitStack:
    """Loading compares outputs of the network in float32, wherever it is called from."""
    stack = ExitStack()
    for kind in ("cpu", "cuda"):
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
