"""Training a classifier on images: what moves, what does not, and going on after a stop."""

import copy

import pytest
import torch
from torch import nn

from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.loader import Plan, TrainingViews, training_batches
from tinyseed.data.readers import reader_for
from tinyseed.data.render import normalize, render_view
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation import classifier as module
from tinyseed.evaluation.classifier import (
    Classifier,
    DivergedError,
    Recipe,
    fit_classifier,
    measure_classifier,
)

FINETUNE = Recipe(3, 24, 0.3, 1.0, schedule="cosine")
FROZEN = Recipe(5, 24, None, 5.0, decay=(0.6, 0.8))


@pytest.fixture(scope="module")
def before(small):
    """The weights of the model that is measured, before any training."""
    return copy.deepcopy(small.state_dict())


@pytest.fixture(scope="module")
def trained(splits, small, before):
    """The classifier of each recipe, trained without a stop."""
    return {recipe: fit_classifier(small, splits.train, 3, recipe) for recipe in (FINETUNE, FROZEN)}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_fine_tuning_changes_the_backbone_and_learns(splits, small, before, trained):
    untrained = measure_classifier(
        fit_classifier(small, splits.train, 3, Recipe(1, 72, 0.0, 0.0)), splits.test
    ).row
    model = trained[FINETUNE]
    assert same(small.state_dict(), before)  # the model that is measured is left alone
    state = model.backbone.state_dict()
    moved = [name for name, value in small.backbone.named_parameters() if not torch.equal(value, state[name])]
    assert len(moved) > 0.9 * len(list(small.backbone.parameters()))  # steps below rounding aside
    measured = measure_classifier(model, splits.test)
    assert measured.unreadable == 0
    assert measured.row["top1"] > untrained["top1"] + 20
    assert measured.row["top1"] >= 70


def test_a_frozen_backbone_stays_as_it_is_batch_norm_included(splits, small, trained):
    model = trained[FROZEN]
    assert same(small.backbone.state_dict(), model.backbone.state_dict())
    assert float(model.head.weight.detach().abs().max()) > 0.1
    assert measure_classifier(model, splits.test).row["top1"] >= 70


def test_bfloat16_learns_as_float32_does_and_leaves_float32_weights(splits, small):
    models = {
        precision: fit_classifier(small, splits.train, 3, FINETUNE, precision=precision)
        for precision in ("32", "bf16")
    }
    heads = {precision: model.head.weight.detach() for precision, model in models.items()}
    assert heads["bf16"].dtype == torch.float32
    distance = float((heads["bf16"] - heads["32"]).norm() / heads["32"].norm())
    assert 1e-6 < distance < 0.5  # another arithmetic, the same training
    tops = {
        precision: measure_classifier(model, splits.test).row["top1"] for precision, model in models.items()
    }
    assert abs(tops["bf16"] - tops["32"]) <= 15


@pytest.mark.parametrize("recipe", [FINETUNE, FROZEN], ids=["finetune", "frozen"])
def test_a_stopped_training_resumes_bit_exactly(splits, small, trained, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    unbroken = trained[recipe]
    honest = module._epoch
    done = []

    def stops(*given, epoch, **more):
        if epoch == recipe.epochs - 1 and not done:
            done.append(epoch)
            raise KeyboardInterrupt
        return honest(*given, epoch=epoch, **more)

    monkeypatch.setattr(module, "_epoch", stops)
    path = tmp_path / "state" / "last.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit_classifier(small, splits.train, 3, recipe, checkpoint=path)
    assert path.is_file()
    epochs = []
    monkeypatch.setattr(
        module,
        "_epoch",
        lambda *given, epoch, **more: epochs.append(epoch) or honest(*given, epoch=epoch, **more),
    )
    resumed = fit_classifier(small, splits.train, 3, recipe, checkpoint=path)
    assert epochs == [recipe.epochs - 1]
    assert same(resumed.state_dict(), unbroken.state_dict())
    assert not path.exists()
    path.write_bytes(b"broken")
    with pytest.raises(RunError, match="checkpoint is broken"):
        fit_classifier(small, splits.train, 3, recipe, checkpoint=path)


def test_the_seed_decides(splits, small):
    short = Recipe(1, 24, 0.1, 0.1)
    one, again, other = (fit_classifier(small, splits.train, 3, short, seed=seed) for seed in (0, 0, 1))
    assert same(one.state_dict(), again.state_dict())
    assert not same(one.state_dict(), other.state_dict())


def test_too_high_a_learning_rate_is_an_error_of_its_own(splits, small):
    with pytest.raises(DivergedError, match="learning rate is too high"):
        fit_classifier(small, splits.train, 3, Recipe(4, 24, 1e20, 1e20))


def test_a_batch_larger_than_the_data_is_refused(splits, small):
    with pytest.raises(InputError, match="batch_size=73: there are 72 images"):
        fit_classifier(small, splits.train, 3, Recipe(1, 73, None, 1.0))


def test_schedules():
    steps = Recipe(100, 256, None, 30.0, decay=(0.6, 0.8))
    assert [steps.factor(epoch * 7, 7) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    cosine = Recipe(10, 256, 1.0, 1.0, schedule="cosine")
    assert [cosine.factor(step, 2) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    by_epochs = Recipe(10, 256, 1.0, 1.0, schedule="cosine-epoch")
    assert [by_epochs.factor(step, 2) for step in (0, 1, 10, 11)] == pytest.approx([1, 1, 0.5, 0.5])


SEEDS_PROBE = Recipe(5, 24, None, 30.0, decay=(0.6, 0.8))
SWAVS_PROBE = Recipe(5, 24, None, 0.3, schedule="cosine-epoch", weight_decay=1e-2)
SWAVS_FINE_TUNING = Recipe(5, 24, 0.02, 5.0, decay=(0.6, 0.8), gamma=0.2, head_init="uniform")


@pytest.mark.parametrize("recipe", [SEEDS_PROBE, SWAVS_PROBE, SWAVS_FINE_TUNING])
def test_training_equals_a_plain_loop_with_torchs_own_schedulers(splits, small, recipe):
    """The same views and order, and otherwise what the published scripts do."""
    seed, scale, train = 3, recipe.batch_size / 256, splits.train
    trained = recipe.lr_backbone is not None
    ours = fit_classifier(small, train, 3, recipe, seed=seed, precision="32")

    backbone = copy.deepcopy(small.backbone).requires_grad_(trained)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(small.width, 3)
        if recipe.head_init == "normal":
            head.weight.data.normal_(mean=0.0, std=0.01)
            head.bias.data.zero_()
    groups = [{"params": head.parameters(), "lr": recipe.lr_head * scale}]
    if trained:
        groups.append({"params": backbone.parameters(), "lr": recipe.lr_backbone * scale})
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=recipe.weight_decay)
    if recipe.schedule == "step":
        milestones = [round(share * recipe.epochs) for share in recipe.decay]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, recipe.gamma)
    else:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    crops = ViewSettings((0.08, 1.0), jitter_probability=0, gray_probability=0, blur_probability=0)
    contract = small.input
    reader = reader_for(contract.channels, contract.pixel_range)
    views = TrainingViews(train.source, (View(crops, contract.size),), seed, train.indices, reader)
    plan = Plan(train.indices, recipe.batch_size, seed)
    batches = training_batches(views, plan, first_step=0, workers=0, pin_memory=False)
    where = {int(index): int(label) for index, label in zip(train.indices, train.labels, strict=True)}
    for _ in range(recipe.epochs):
        backbone.train(trained)
        for _ in range(len(train) // recipe.batch_size):
            batch = next(batches)
            images = normalize(render_view(batch.pixels[0], batch.draws[0]), contract.mean, contract.std)
            targets = torch.tensor([where[int(index)] for index in batch.indices])
            images = images.contiguous(memory_format=torch.channels_last)
            loss = nn.CrossEntropyLoss()(head(backbone(images)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    for name, expected in head.state_dict().items():
        distance = (ours.head.state_dict()[name] - expected).norm() / expected.norm()
        assert float(distance) < (1e-4 if trained else 1e-6)


def test_initial_heads(small):
    """Standard deviation 0.01 and no bias; or torch's own, up to 1 / √width."""
    normal, uniform = (
        Classifier(small.backbone, 50, trained_backbone=False, seed=1, head_init=init).head.requires_grad_(
            False
        )
        for init in ("normal", "uniform")
    )
    assert float(normal.weight.std()) == pytest.approx(0.01, rel=0.03)
    assert float(normal.bias.abs().max()) == 0
    bound = small.width**-0.5
    for values in (uniform.weight, uniform.bias):
        assert 0.9 * bound < float(values.abs().max()) <= bound
    assert float(uniform.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
