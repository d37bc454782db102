from pathlib import Path

import pytest
import torch

from tinyseed.checkpoints.load import load_model
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.detect.batches import Sizes, trainable
from tinyseed.evaluation.detect.coco import read_coco
from tinyseed.evaluation.detect.network import build_detector
from tinyseed.evaluation.detect.progress import Progress
from tinyseed.evaluation.detect.score import average_precision, detect
from tinyseed.evaluation.detect.train import Plan, schedule_steps, train
from tinyseed.evaluation.detect.voc import read_voc
from tinyseed.models.spec import ModelSpec

pytest.importorskip("pycocotools")


def detector(norm="trained", *, masks=False, name="mobilenetv3_small_050", seed=0):
    made = build_detector(load_model(f"random:{name}"), 2, masks=masks, norm=norm, seed=seed, width=16)
    made.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    return made


def fit(made, scenes, folder, *, steps=4, stop=lambda: False, key="k", **settings):
    plan = Plan(steps, settings.pop("peak", 0.01), 2, Sizes((64,)), 0, settings.pop("masks", False))
    progress = Progress(quiet=True)
    return train(
        made, scenes, plan, checkpoint=folder / "d.ckpt", key=key, progress=progress, stop=stop, **settings
    )


@pytest.fixture
def scenes(squares_voc):
    return trainable(read_voc([str(squares_voc)], "trainval", "--train-data").scenes)


def stopping_after(steps):
    calls = iter([False] * (steps - 1) + [True])
    return lambda: next(calls)


def test_a_stopped_training_goes_on_bit_for_bit(scenes, tmp_path):
    whole, halves = detector(), detector()
    unbroken = fit(whole, scenes, tmp_path / "a")
    assert fit(halves, scenes, tmp_path / "b", stop=stopping_after(2)) is None
    other = detector(seed=5)  # its weights come from the checkpoint
    resumed = fit(other, scenes, tmp_path / "b")
    assert unbroken is not None
    assert resumed is not None
    assert resumed.losses == unbroken.losses
    assert len(resumed.losses) == 4
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_training_leaves_the_global_generator_alone(scenes, tmp_path):
    torch.manual_seed(11)
    wanted = torch.rand(3)
    made = detector()
    torch.manual_seed(11)
    fit(made, scenes, tmp_path, steps=1)
    assert torch.equal(torch.rand(3), wanted)


def test_checkpoints_of_others_and_broken_ones_are_refused(scenes, tmp_path):
    fit(detector(), scenes, tmp_path, stop=stopping_after(1))
    with pytest.raises(InputError, match="is the checkpoint of another training; delete it"):
        fit(detector(), scenes, tmp_path, key="other")
    (tmp_path / "d.ckpt").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="is no readable checkpoint"):
        fit(detector(), scenes, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(scenes, tmp_path):
    made = detector()
    with torch.no_grad():
        made.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="no finite number near step 1; give a lower --lr"):
        fit(made, scenes, tmp_path, steps=1)


@pytest.mark.parametrize("norm", ["frozen", "trained"])
def test_batch_norms_through_a_whole_training(scenes, tmp_path, norm):
    made = detector(norm)
    levels = made.backbone.levels
    before = {name: value.clone() for name, value in levels.state_dict().items()}
    fit(made, scenes, tmp_path, steps=2)
    after = levels.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert ("network.bn1.running_mean" in changed) == (norm == "trained")
    assert ("network.bn1.weight" in changed) == (norm == "trained")
    assert "network.conv_stem.weight" in changed
    assert not levels.norms()[0].training or norm == "trained"


def test_the_start_point_gets_no_training_itself_and_all_of_its_weights(scenes, tmp_path):
    encoder = load_model("random:mobilenetv3_small_050")
    before = {name: value.clone() for name, value in encoder.backbone.network.state_dict().items()}
    made = build_detector(encoder, 2, masks=False, norm="trained", seed=0, width=16)
    inside = made.backbone.levels.network.state_dict()
    assert all(torch.equal(inside[name], value) for name, value in before.items())
    fit(made, scenes, tmp_path, steps=1)
    assert all(
        torch.equal(value, before[name]) for name, value in encoder.backbone.network.state_dict().items()
    )


def test_heads_are_the_same_for_each_start_point():
    plain, other = (
        load_model("random:mobilenetv3_small_050"),
        load_model(ModelSpec("random:mobilenetv3_small_050", seed=9)),
    )
    first, second = (
        build_detector(encoder, 2, masks=False, norm="trained", seed=0, width=16).state_dict()
        for encoder in (plain, other)
    )
    trunk = {name for name in first if name.startswith("backbone.levels.")}
    assert all(torch.equal(first[name], second[name]) for name in first.keys() - trunk)
    assert not torch.equal(*(state["backbone.levels.network.conv_stem.weight"] for state in (first, second)))


def test_masks_are_trained(squares_coco, tmp_path):
    scenes = read_coco(str(squares_coco), "train2017", "--train-data", masks=True).scenes
    made = detector(masks=True)
    before = made.roi_heads.mask_predictor.mask_fcn_logits.weight.clone()
    assert fit(made, scenes, tmp_path, steps=1, masks=True) is not None
    assert not torch.equal(made.roi_heads.mask_predictor.mask_fcn_logits.weight, before)
    lines, _ = detect(made, scenes[:2], Sizes((64,)), batch_size=2, masks=True)
    assert average_precision(scenes[:2], ("blue", "red"), lines, "segm").ap >= 0


def test_schedules():
    assert schedule_steps("1x", "coco", 16) == 90_000
    assert schedule_steps("2x", "coco", 16) == 180_000
    assert schedule_steps("1x", "voc", 4) == 72_000
    plan = Plan(90_000, 0.02, 16, Sizes((800,)), 0, masks=False)
    assert plan.lr(499) == pytest.approx(0.01)
    assert plan.lr(59_999) == pytest.approx(0.02)
    assert plan.lr(60_000) == pytest.approx(0.002)
    assert plan.lr(80_000) == pytest.approx(0.0002)


@pytest.mark.slow
def test_squares_are_learned(squares_voc, tmp_path: Path):
    train_side = read_voc([str(squares_voc)], "trainval", "--train-data")
    test_side = read_voc([str(squares_voc)], "test", "--train-data")
    made = detector("trained", name="resnet10t")
    made.roi_heads.score_thresh = 0.01
    trained = fit(made, train_side.scenes, tmp_path, steps=60, peak=0.02)
    assert trained is not None
    first, last = sum(trained.losses[:6]) / 6, sum(trained.losses[-6:]) / 6
    lines, _ = detect(made, test_side.scenes, Sizes((64,)), batch_size=2, masks=False)
    precision = average_precision(test_side.scenes, test_side.classes, lines, "bbox")
    assert last < 0.7 * first
    assert precision.ap50 > 5
