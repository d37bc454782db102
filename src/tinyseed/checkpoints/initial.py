"""Weights that a network begins its training with: those of a run, or of any checkpoint that a teacher could have."""

from dataclasses import replace
from pathlib import Path

import torch

from tinyseed.checkpoints.fit import describe_misfits, fit_network, fit_weights, misfits
from tinyseed.checkpoints.load import load_model, path_of
from tinyseed.checkpoints.recognition import take_apart
from tinyseed.checkpoints.saved import is_export
from tinyseed.checkpoints.weights import read_content
from tinyseed.errors import InputError
from tinyseed.models.backbones import Backbone
from tinyseed.models.libraries import LibraryNetwork
from tinyseed.models.spec import ModelSpec

_SAME = 1e-5
"""Largest difference of features, relative to the largest feature, of networks that compute the same."""


def initialize(backbone: Backbone, weights: str, prefix: str | None = None) -> None:
    """Replace a backbone's weights by those of another of the same architecture; a head is not used.

    Args:
        backbone: as it is built, on the CPU.
        weights: a run folder, an exported file, a checkpoint, its URL, or the name of a model with weights.
        prefix: which part of a checkpoint, see `ModelSpec`.

    Raises:
        InputError: they cannot be read, or are of another architecture, which is named. What the network should be is
            called `arch`, as in `ModelSpec`.
    """
    spec = ModelSpec(weights, prefix=prefix, output="backbone")
    try:
        given = load_model(spec).backbone
    except InputError:
        if not _fitted_by_name(backbone, spec):
            raise
        return
    _take(backbone, given, weights)


def _fitted_by_name(backbone: Backbone, spec: ModelSpec) -> bool:
    """Fit a checkpoint that several architectures, or none that is known, could have; returns whether it fits."""
    path = path_of(str(spec.name))
    if path is None or not path.is_file() or is_export(path):
        return False
    try:
        parts = take_apart(read_content(path), path, replace(spec, arch=backbone.name))
        made = LibraryNetwork(
            backbone.network, backbone.build, backbone.input, parts.architecture.classifiers
        )
        fit_network(made, parts.backbone, path)
    except InputError:
        return False
    return True


def _take(backbone: Backbone, given: Backbone, source: str | Path) -> None:
    """Copy weights, where both networks compute the same from them."""
    state, name = given.network.state_dict(), backbone.name
    other = given.name.partition(".")[0]  # timm's names may have a tag of the weights
    problems = misfits(backbone.network.state_dict(), state)
    if problems and other == name.partition(".")[0]:
        why = f"does not fit {name} as it is built here, nothing was loaded: {describe_misfits(problems)}"
        raise InputError(source, why)
    if not problems:
        fit_weights(backbone.network, state, name=name, source=source)
    if problems or not (given.build == backbone.build or _compute_the_same(backbone, given)):
        why = f"holds weights of {other}, not of {name}; give weights of that, or `arch` {other}"
        raise InputError(source, why)


@torch.no_grad()
def _compute_the_same(backbone: Backbone, given: Backbone) -> bool:
    """Whether two networks with the same weights give the same features of noise of the first one's size."""
    contract, training = backbone.input, backbone.training
    shape = (1, contract.channels, contract.size, contract.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        wanted, found = backbone.eval()(noise), given.eval()(noise)
    except (RuntimeError, ValueError, AssertionError):  # of another size
        return False
    finally:
        backbone.train(training)
    return wanted.shape == found.shape and bool((found - wanted).abs().max() <= _SAME * wanted.abs().max())
