"""`evaluate knn` as a whole."""

import pytest

from tinyseed.errors import InputError
from tinyseed.evaluation.knn import SPEC, KnnSettings
from tinyseed.evaluation.run import evaluate


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
