"""Embedding: order, normalization, modes restored, a cache that cannot harm, and features kept in pieces."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tinyseed.errors import RunError
from tinyseed.evaluation import features as module
from tinyseed.evaluation.features import (
    BankKey,
    FeatureBank,
    cached,
    embed,
    embed_source,
    embed_split,
    evaluating,
)
from tinyseed.evaluation.splits import open_splits
from tinyseed.models.contract import IMAGENET
from tinyseed.settings.evaluation import EvaluationSettings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor
    indices: torch.Tensor


def batches(*groups: list[int]) -> list[Batch]:
    """Constant images whose brightness is their position."""
    made = []
    for group in groups:
        pixels = torch.tensor(group, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
        made.append(Batch(pixels, torch.tensor(group, dtype=torch.int64)))
    return made


def mean_color(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


def test_images_are_normalized_and_stay_in_order():
    bank = embed(mean_color, batches([4, 0], [], [200]), IMAGENET, on=CPU)
    assert bank.indices.tolist() == [4, 0, 200]
    expected = (np.array([[4], [0], [200]]) / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(bank.features.numpy(), expected, atol=1e-6)
    assert bank.features.dtype == torch.float32
    assert bank.labels.tolist() == [-1, -1, -1]


def test_the_batches_are_left_as_they_were():
    (batch,) = batches([7, 9])
    embed(mean_color, [batch], IMAGENET, on=CPU)
    assert batch.pixels.unique().tolist() == [7, 9]


def test_labels_follow_their_images():
    labels = np.array([5, -1, 7, 8], np.int64)
    bank = embed(mean_color, batches([3, 1], [0]), IMAGENET, on=CPU, labels=labels)
    assert bank.labels.tolist() == [8, -1, 5]


def test_autocast_is_for_the_network_only():
    layer = nn.Linear(3, 2)
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        out = layer(mean_color(images))
        seen.append(out.dtype)
        return out

    bank = embed(network, batches([1], [2]), IMAGENET, on=CPU, autocast=torch.bfloat16)
    assert seen == [torch.bfloat16] * 2
    assert bank.features.dtype == torch.float32
    assert not bank.features.requires_grad


def test_nothing_readable_is_an_error():
    with pytest.raises(RunError, match="no image could be read"):
        embed(mean_color, batches([], []), IMAGENET, on=CPU)


def test_every_part_gets_its_mode_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    network.train()
    network[1][1].eval()  # a frozen batch norm, as fine-tuning has it
    before = [part.training for part in network.modules()]

    def fails() -> None:
        with evaluating(network) as same:
            assert same is network
            assert not any(part.training for part in network.modules())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails()
    assert [part.training for part in network.modules()] == before
    assert True in before
    assert False in before


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    return BankKey(model="abc", source="def", size=64)


def made_bank() -> FeatureBank:
    return FeatureBank(torch.randn(7, 5), torch.arange(7), torch.arange(7) % 3 - 1)


def refuse() -> FeatureBank:
    raise AssertionError("computed anew")


def assert_same(one: FeatureBank, other: FeatureBank) -> None:
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_bank_is_computed_once(key, labelled):
    bank = made_bank() if labelled else FeatureBank(torch.randn(7, 5), torch.arange(7), torch.full((7,), -1))
    assert_same(cached(key, lambda: bank), bank)
    assert_same(cached(key, refuse), bank)


@pytest.mark.parametrize(
    "other",
    [
        BankKey("abd", "def", 64),
        BankKey("abc", "deg", 64),
        BankKey("abc", "def", 96),
        BankKey("abc", "def", 64, precision="bf16"),
        BankKey("abcd", "ef", 64),
    ],
)
def test_another_model_source_size_or_precision_is_another_bank(key, other):
    cached(key, made_bank)
    bank = made_bank()
    assert_same(cached(other, lambda: bank), bank)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_bank_is_computed_anew(key, damage):
    cached(key, made_bank)
    content = bytearray(key.path.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
    key.path.write_bytes(
        {"cut": content[:-4], "empty": b"", "foreign": b"{}" * 50}.get(damage, bytes(content))
    )
    bank = made_bank()
    assert_same(cached(key, lambda: bank), bank)
    assert_same(cached(key, refuse), bank)


def test_a_cache_that_cannot_be_written_does_no_harm(key, monkeypatch):
    def full(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(module, "write_arrays", full)
    bank = made_bank()
    assert_same(cached(key, lambda: bank), bank)


# --- splits and sources --------------------------------------------------------------------------------------------


def splits_of(train, test):
    return open_splits(EvaluationSettings(train_data=(str(train),), test_data=(str(test),)))


@pytest.fixture
def pieces(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


def test_features_in_pieces_are_those_in_one_and_resume_where_they_stopped(
    splits, small, pieces, monkeypatch
):
    split = splits.train
    whole = embed_source(small, split.source)
    embedded = []
    honest = module.embed

    def stops(*given, **more):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(honest(*given, **more))
        return embedded[-1]

    monkeypatch.setattr(module, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        embed_split(small, split)
    again = []
    monkeypatch.setattr(module, "embed", lambda *given, **more: again.append(0) or honest(*given, **more))
    bank = embed_split(small, split)
    assert len(again) == 3  # of five pieces two were there
    torch.testing.assert_close(bank.features, whole.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(bank.labels, whole.labels)
    assert torch.equal(bank.indices, torch.arange(72))
    monkeypatch.setattr(module, "embed", None)
    assert torch.equal(embed_split(small, split).features, bank.features)


def test_half_precision_is_kept_as_such(splits, small, pieces):
    split = splits.test
    half, full = embed_split(small, split, precision="16"), embed_split(small, split, precision="32")
    assert (half.features.dtype, full.features.dtype) == (torch.float16, torch.float32)
    assert torch.equal(half.features, full.features.half())
    assert torch.equal(embed_split(small, split, precision="16").features, half.features)


def test_features_beyond_half_precision_are_an_error(splits, small, pieces, monkeypatch):
    honest = small.features
    monkeypatch.setattr(small, "features", lambda images: honest(images) * 1e7)
    with pytest.raises(RunError, match="set `bank_precision` to 32"):
        embed_split(small, splits.test, precision="16")


def test_unreadable_images_are_left_out_and_counted(changed, small, pieces):
    train, test = changed
    for number in range(16):
        (train / "blue" / f"train-blue-{number:02d}.png").write_bytes(b"no image")
    splits = splits_of(train, test)
    bank = embed_split(small, splits.train)
    assert bank.unreadable == 16
    assert torch.equal(bank.indices, torch.arange(16, 72))
    assert np.bincount(bank.labels.numpy()).tolist() == [8, 24, 24]
    for file in test.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match="no image could be read"):
        embed_split(small, splits.test)
