"""Which architecture a state dict is of, by the names and shapes of its tensors.

The index (assets/signatures.json, made by scripts/make_signatures.py) has a row for each architecture of torchvision,
timm and `tinyseed.networks`: a digest of its names and shapes without classifier, its number of tensors and of
parameters, its classifiers, and its parts: the first components of its tensors' names.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch

from tinyseed.checkpoints.fit import fit_weights, misfits, without
from tinyseed.checkpoints.weights import StateDict
from tinyseed.errors import InputError
from tinyseed.files import digest
from tinyseed.models.backbones import Backbone, build_backbone
from tinyseed.models.libraries import create_on_meta
from tinyseed.models.names import find_model

_COUNTER = "num_batches_tracked"
_COMPARED = 3
"""Number of architectures of about the same size and parts that are built and compared name by name."""
_LIBRARIES = ("torchvision/", "swav/", "seed/")
"""Where several have the same tensors, the first of these wins over timm's (whose ResNets are torchvision's)."""
_SAME = 1e-5
_ALIKE = 0.1
"""Part of a network's names that a file has to have for the two to be called near."""


class Architecture(NamedTuple):
    """A model's name, and the modules of its whole network that a file has and the backbone does not."""

    name: str
    classifiers: tuple[str, ...]


class _Row(NamedTuple):
    signature: str
    tensors: int
    numbers: int
    classifiers: tuple[str, ...]
    parts: frozenset[str]


def parts_of(names: Iterable[str]) -> list[str]:
    """The first components of tensors' names.

    >>> parts_of(["conv1.weight", "layer1.0.weight", "layer1.1.weight"])
    ['conv1', 'layer1']
    """
    return sorted({name.partition(".")[0] for name in names})


def signature(state: StateDict) -> str:
    """12 hexadecimal digits for names and shapes; batch norm's counters, which old files lack, do not count."""
    lines = [f"{name} {list(value.shape)}" for name, value in state.items() if not name.endswith(_COUNTER)]
    return digest(*sorted(lines), digits=12)


def matching(state: StateDict) -> list[Architecture]:
    """The architectures that have exactly these tensors, their classifiers aside; several where they do not decide."""
    index = _index()
    tops = {name[: -len(".weight")] for name in state if name.endswith(".weight")}
    for classifiers in sorted({row.classifiers for row in index.values()} | {()}):
        if not all(any(top == each or top.startswith(f"{each}.") for top in tops) for each in classifiers):
            continue
        digits = signature(without(state, classifiers))
        found = [
            Architecture(name, classifiers)
            for name, row in index.items()
            if row.signature == digits and set(classifiers) <= set(row.classifiers)
        ]
        if found:
            return found
    return []


def choose(
    found: Sequence[Architecture],
    state: StateDict,
    path: Path,
    prefer: Sequence[str],
    *,
    same_input: bool = False,
) -> Architecture:
    """The one that is meant of the architectures that have a state dict's tensors.

    Several of timm's may have them: where all compute the same from these weights and expect the same normalization,
    the one with the plainest name is taken (no `tf_`, then the shortest).

    Args:
        found: as `matching` gives them; at least one.
        state: tensors by name.
        path: their file, for errors.
        prefer: beginnings of names (`swav/`) that win over the others.
        same_input: the file's format decides on the input, whatever the networks' libraries say of it.

    Raises:
        InputError: several that differ have these tensors, and they are named.
    """
    for beginning in (*prefer, *_LIBRARIES):
        preferred = next((each for each in found if each.name.startswith(beginning)), None)
        if preferred is not None:
            return preferred
    found = sorted(found, key=lambda each: (each.name.startswith("tf_"), len(each.name), each.name))
    names = [each.name for each in found]
    if len(found) > 1 and not _compute_the_same(names, state, found[0].classifiers, same_input=same_input):
        why = "has tensors of several architectures that differ in what they compute or expect"
        raise InputError(path, f"{why}; give `arch` {' or '.join(names)}")
    return found[0]


@functools.cache
def _index() -> dict[str, _Row]:
    content = json.loads(files("tinyseed.assets").joinpath("signatures.json").read_text(encoding="utf-8"))
    classifiers = [tuple(each) for each in content["classifiers"]]
    parts = [frozenset(each) for each in content["parts"]]
    return {
        name: _Row(digits, tensors, numbers, classifiers[which], parts[these])
        for name, (digits, tensors, numbers, which, these) in content["architectures"].items()
    }


def _compute_the_same(
    names: Sequence[str], state: StateDict, classifiers: Sequence[str], *, same_input: bool
) -> bool:
    """Whether these architectures give the same features of noise with these weights, and are normalized alike."""
    plain = without(state, classifiers)
    first, *others = (_loaded(name, plain) for name in names)
    side = first.input.size
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = first.eval()(noise)
        for other in others:
            if not same_input and (other.input.mean, other.input.std) != (first.input.mean, first.input.std):
                return False
            try:
                given = other.eval()(noise)
            except (RuntimeError, ValueError, AssertionError):  # of another size
                return False
            if given.shape != wanted.shape or (given - wanted).abs().max() > _SAME * wanted.abs().max():
                return False
    return True


def _loaded(name: str, state: StateDict) -> Backbone:
    backbone = build_backbone(name, seed=0)
    fit_weights(backbone.network, state, name=name, source=name)
    return backbone


def nearest(state: StateDict) -> tuple[str, dict[str, list[str]]] | None:
    """The architecture whose tensors come nearest, and what keeps these from fitting; None where none is near."""
    compared = {}
    for name in _of_about_this_size(state):
        try:
            made = create_on_meta(*find_model(name))
        except InputError:
            continue
        wanted = made.network.state_dict()
        if len(wanted.keys() & state.keys()) >= _ALIKE * len(wanted):
            compared[name] = misfits(wanted, without(state, made.classifiers))
    if not compared:
        return None
    return min(compared.items(), key=lambda item: sum(map(len, item[1].values())))


def _of_about_this_size(state: StateDict) -> list[str]:
    """Names of the architectures whose counts and parts are nearest; one of each signature."""
    numbers = sum(value.numel() for value in state.values()) + 1
    parts = set(parts_of(state))

    def distance(row: _Row) -> float:
        # A classifier may be among them, so that a little more counts as little.
        sizes = abs(math.log(len(state) / row.tensors)) + abs(math.log(numbers / (row.numbers + 1)))
        return sizes + 2 * (1 - len(parts & row.parts) / len(parts | row.parts))

    nearest: dict[str, str] = {}
    for name, row in sorted(_index().items(), key=lambda item: distance(item[1])):
        nearest.setdefault(row.signature, name)
        if len(nearest) == _COMPARED:
            break
    return list(nearest.values())
