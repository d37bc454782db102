"""Tensors are loaded into a network whole or not at all."""

import pytest
import torch
from torch import nn

from tinyseed.checkpoints.fit import fit_weights
from tinyseed.errors import InputError


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))


def test_weights_fit_whole():
    source, target = network(), network()
    fit_weights(target, source.state_dict(), name="net", source="w")
    assert same(source.state_dict(), target.state_dict())


def test_old_files_without_batch_norm_counters_fit():
    source, target = network(), network()
    old = {
        key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    fit_weights(target, old, name="net", source="w")
    assert same(source.state_dict(), target.state_dict())


def test_a_classifier_may_be_there():
    source, target = network(), network()
    state = source.state_dict() | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    fit_weights(target, state, name="net", source="w", left_out=["fc"])
    assert same(source.state_dict(), target.state_dict())
    with pytest.raises(InputError, match=r"2 unexpected \(fc.weight, fc.bias\)"):
        fit_weights(target, state, name="net", source="w", left_out=["f"])


def test_misfits_are_listed_and_nothing_is_loaded():
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {f"other.{index}": torch.zeros(1) for index in range(6)}
    state |= {"0.weight": torch.zeros(2, 1, 5, 5), "0.bias": torch.zeros(2), "1.weight": torch.zeros(2)}
    with pytest.raises(InputError) as caught:
        fit_weights(target, state, name="net", source="w.pth")
    assert str(caught.value) == (
        "w.pth: does not fit net, nothing was loaded: "
        "5 missing (1.bias, 1.running_mean, 1.running_var, 2.weight, …); "
        "6 unexpected (other.0, other.1, other.2, other.3, …); "
        "1 mis-shaped (0.weight [2, 1, 5, 5] instead of [2, 1, 3, 3])"
    )
    assert same(before, target.state_dict())
