import pytest
import torch

import tinyseed
from tinyseed.errors import InputError


def test_every_public_name_is_there():
    for name in tinyseed.__all__:
        assert getattr(tinyseed, name) is not None
    assert set(tinyseed.__all__) <= set(dir(tinyseed))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tinyseed.nonsense  # noqa: B018


def test_evaluate_is_a_function_whatever_was_imported_before():
    import tinyseed.evaluation.knn

    assert callable(tinyseed.evaluate)


def test_distill_load_and_evaluate_from_python(photos, tmp_path):
    settings = {"epochs": 1, "batch_size": 8, "image_size": 32, "workers": 0, "precision": "32"}
    out = tmp_path / "run"
    summary = tinyseed.distill(
        data=photos,
        teacher="resnet10t",
        teacher_weights="random",
        student="mobilenetv3_small_050",
        out=out,
        **settings,
    )
    assert summary["steps"] == 6
    encoder = tinyseed.load(out)
    rows = encoder(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    report = tinyseed.evaluate("knn", model=out, train_data=photos, test_data=photos, k=[1])
    assert 0 < report.results[0]["top1"] < 100.0
    assert any("leave-one-out" in note for note in report.notes)
    with pytest.raises(InputError, match="model: missing"):
        tinyseed.evaluate("knn", train_data=photos, test_data=photos)
    teacher = tinyseed.load_teacher(out)
    torch.testing.assert_close(
        teacher(torch.zeros(1, 3, 32, 32)), encoder(torch.zeros(1, 3, 32, 32)).detach()
    )


def test_an_unknown_setting_is_refused_with_the_closest(photos, tmp_path):
    with pytest.raises(InputError, match="batchsize=8: unknown setting; did you mean batch_size"):
        tinyseed.distill(
            data=photos, teacher="resnet10t", student="resnet10t", out=tmp_path / "o", batchsize=8
        )
