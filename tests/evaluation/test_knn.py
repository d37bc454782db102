"""`evaluate knn` as a whole."""

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import tinyseed
from tinyseed import cli
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.render import normalize
from tinyseed.errors import InputError
from tinyseed.evaluation.features import view_batches
from tinyseed.evaluation.knn import SPEC, KnnSettings
from tinyseed.evaluation.run import evaluate
from tinyseed.models.encoder import Encoder, build_projector


def test_knn_leaves_one_out_where_both_splits_are_the_same(colors, settings, tmp_path):
    train, _ = colors
    given = settings | {"test_data": (str(train),), "limit": 12}
    report = evaluate(
        SPEC, KnnSettings(model="random:resnet10t", k=(1, 11), weighting="both", out=tmp_path, **given)
    )
    assert any(note.startswith("leave-one-out") for note in report.notes)
    assert [(row["k"], row["weighting"]) for row in report.results] == [
        (1, "weighted"),
        (11, "weighted"),
        (1, "majority"),
        (11, "majority"),
    ]
    with pytest.raises(InputError, match="k=12: there are 11 labeled images to vote"):
        evaluate(SPEC, KnnSettings(model="random:resnet10t", k=(12,), **given))


@pytest.fixture(scope="module")
def with_head(small, tmp_path_factory):
    """A folder with the small network and a head onto eight numbers."""
    folder = tmp_path_factory.mktemp("head")
    save_encoder(folder, Encoder(small.backbone, build_projector("mlp", small.width, 8, seed=4)))
    return folder


@torch.no_grad()
def by_hand(split, model, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features of a split's images one after another by torch alone, and their labels."""
    (batch,) = view_batches(split.source, split.indices, model.input)
    images = normalize(batch.pixels.float() / 255, model.input.mean, model.input.std)
    features = model.backbone.network(images)
    if whole:
        for layer in model.projector:
            features = layer(features)
    return features.numpy(), split.labels


@pytest.mark.parametrize("output", ["backbone", "head", "trunk"])
def test_neighbors_are_those_of_the_output_that_was_asked_for(with_head, splits, settings, tmp_path, output):
    given = {"model": with_head, "model_output": output, "k": (4,), "weighting": "majority"}
    (row,) = tinyseed.evaluate("knn", out=tmp_path, **given, **settings).results
    model = tinyseed.load(with_head)
    train, test = (by_hand(part, model, output == "head") for part in (splits.train, splits.test))
    assert train[0].shape[1] == (8 if output == "head" else model.width)
    reference = KNeighborsClassifier(4, metric="cosine", algorithm="brute").fit(*train)
    assert row["top1"] == pytest.approx(100 * reference.score(*test))


def test_the_two_outputs_are_cached_apart(with_head, settings):
    tops = [
        tinyseed.evaluate("knn", model=with_head, model_output=output, k=(1,), **settings).weights
        for output in ("head", "backbone", "head")
    ]
    assert tops[0] == tops[2] != tops[1]


def test_a_head_that_is_not_there_is_an_error(settings, capsys):
    data = ["--train-data", *settings["train_data"], "--test-data", *settings["test_data"]]
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "knn", "--model", "random:resnet10t", "--model-output", "head", *data])
    assert caught.value.code == 2
    message = "tinyseed: error: --model-output: head: resnet10t has no head; give backbone"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_the_papers_settings_are_a_recipe_and_can_be_changed(with_head, settings, tmp_path):
    given = {"model": with_head, **settings}
    report = tinyseed.evaluate("knn", recipe="seed-knn", out=tmp_path, **given)
    assert [(row["k"], row["weighting"]) for row in report.results] == [(10, "majority")]
    assert report.settings["model_output"] == "head"
    plain = tinyseed.evaluate("knn", k=10, weighting="majority", model_output="head", **given)
    assert report.results == plain.results
    changed = tinyseed.evaluate("knn", recipe="seed-knn", weighting="weighted", k=(3, 5), **given)
    assert [(row["k"], row["weighting"]) for row in changed.results] == [(3, "weighted"), (5, "weighted")]
    page = (tmp_path / "evaluate-knn.md").read_text()
    assert "--k 10 --weighting majority" in page
    assert "--recipe" not in page
    assert json.loads((tmp_path / "evaluate-knn.json").read_text())["settings"]["recipe"] == "seed-knn"


def test_a_recipe_of_another_evaluation_is_refused(settings):
    with pytest.raises(InputError, match="is for tinyseed evaluate linear; here give one of seed-knn, "):
        tinyseed.evaluate("knn", model="random:resnet10t", recipe="seed-linear", **settings)
    with pytest.raises(InputError, match="recipe=seed-knn: unknown setting"):
        tinyseed.evaluate("transfer", model="random:resnet10t", recipe="seed-knn", **settings)


def test_the_temperature_of_votes(small, settings):
    rows = [
        tinyseed.evaluate("knn", model="random:resnet10t", k=(24,), temperature=value, **settings).results[0]
        for value in (1e-4, 0.07)
    ]
    nearest = tinyseed.evaluate("knn", model="random:resnet10t", k=(1,), **settings).results[0]
    assert rows[0]["top1"] == nearest["top1"]  # only the nearest counts
    with pytest.raises(InputError, match="temperature=0: give a number above 0"):
        tinyseed.evaluate("knn", model="random:resnet10t", temperature=0, **settings)
