from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyseed.checkpoints.load import load_model
from tinyseed.detection.batches import Views
from tinyseed.detection.coco import read_coco
from tinyseed.detection.detector import build_detector
from tinyseed.detection.score import average_precision, detect
from tinyseed.detection.train import Plan, schedule_steps, train
from tinyseed.detection.voc import read_voc
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.base import Interrupted
from tinyseed.files import read_checkpoint, write_checkpoint
from tinyseed.models.spec import ModelSpec
from tinyseed.progress import Progress

pytest.importorskip("pycocotools")


def detector(norm="trained", *, masks=False, name="mobilenetv3_small_050", seed=0):
    made = build_detector(load_model(f"random:{name}"), 2, masks=masks, norm=norm, seed=seed, width=16)
    made.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    made.roi_heads.detections_per_img = 20
    made.rpn._post_nms_top_n = {"training": 200, "testing": 200}
    return made


def fit(made, images, folder, *, steps=4, stop=lambda: False, name="d", lr=0.01, masks=False):
    plan = Plan(steps, lr, Views(2, (64,), masks=masks))
    progress = Progress(quiet=True)
    return train(made, images, plan, checkpoint=folder / f"{name}.ckpt", progress=progress, stop=stop)


@pytest.fixture
def images(squares_voc):
    return read_voc([str(squares_voc)], "trainval").trainable


def stopping_after(steps):
    calls = iter([False] * (steps - 1) + [True])
    return lambda: next(calls)


def test_a_stopped_training_resumes_bit_exactly(images, tmp_path):
    whole, halves = detector(), detector()
    unbroken = fit(whole, images, tmp_path / "a")
    with pytest.raises(Interrupted):
        fit(halves, images, tmp_path / "b", stop=stopping_after(2))
    other = detector(seed=5)  # its weights come from the checkpoint
    resumed = fit(other, images, tmp_path / "b")
    assert resumed.losses == unbroken.losses
    assert len(resumed.losses) == 4
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_training_leaves_the_global_generator_alone(images, tmp_path):
    torch.manual_seed(11)
    wanted = torch.rand(3)
    made = detector()
    torch.manual_seed(11)
    fit(made, images, tmp_path, steps=1)
    assert torch.equal(torch.rand(3), wanted)


def test_checkpoints_of_others_and_broken_ones_are_refused(images, tmp_path):
    with pytest.raises(Interrupted):
        fit(detector(), images, tmp_path, stop=stopping_after(1))
    (tmp_path / "other.ckpt").write_bytes((tmp_path / "d.ckpt").read_bytes())
    with pytest.raises(InputError, match="the checkpoint of another training; delete it"):
        fit(detector(), images, tmp_path, name="other")
    content = read_checkpoint(tmp_path / "d.ckpt")
    for odd in ({"detector": {}}, {"optimizer": None}, {"losses": 5}, {"losses": ["a"]}, {"seconds": None}):
        write_checkpoint(tmp_path / "d.ckpt", content | odd)
        with pytest.raises(InputError, match=r"d.ckpt: a damaged checkpoint \(.*\); delete it"):
            fit(detector(), images, tmp_path)
    (tmp_path / "d.ckpt").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint .*; delete it"):
        fit(detector(), images, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(images, tmp_path):
    made = detector()
    with torch.no_grad():
        made.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite near step 1; give a lower `lr`"):
        fit(made, images, tmp_path, steps=1)


@pytest.mark.parametrize("norm", ["frozen", "trained"])
def test_batch_norms_through_a_whole_training(images, tmp_path, norm):
    made = detector(norm)
    levels = made.backbone.levels
    before = {name: value.clone() for name, value in levels.state_dict().items()}
    fit(made, images, tmp_path, steps=2)
    after = levels.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert ("network.bn1.running_mean" in changed) == (norm == "trained")
    assert ("network.bn1.weight" in changed) == (norm == "trained")
    assert "network.conv_stem.weight" in changed
    assert not levels.norms()[0].training or norm == "trained"


def test_the_start_point_gets_no_training_itself_and_all_of_its_weights(images, tmp_path):
    encoder = load_model("random:mobilenetv3_small_050")
    before = {name: value.clone() for name, value in encoder.backbone.network.state_dict().items()}
    made = build_detector(encoder, 2, masks=False, norm="trained", seed=0, width=16)
    inside = made.backbone.levels.network.state_dict()
    assert all(torch.equal(inside[name], value) for name, value in before.items())
    fit(made, images, tmp_path, steps=1)
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
    backbone = {name for name in first if name.startswith("backbone.levels.")}
    assert all(torch.equal(first[name], second[name]) for name in first.keys() - backbone)
    assert not torch.equal(*(state["backbone.levels.network.conv_stem.weight"] for state in (first, second)))


def test_masks_are_trained(squares_coco, tmp_path):
    split = read_coco(str(squares_coco), "train2017", masks=True)
    few = replace(split, images=split.images[:2])
    made = detector(masks=True)
    before = made.roi_heads.mask_predictor.mask_fcn_logits.weight.clone()
    fit(made, few.images, tmp_path, steps=1, masks=True)
    assert not torch.equal(made.roi_heads.mask_predictor.mask_fcn_logits.weight, before)
    found, _ = detect(made, few.images, Views(2, (64,), masks=True))
    assert average_precision(few, found, "segm").ap >= 0


def test_schedules():
    assert schedule_steps("1x", "coco", 16) == 90_000
    assert schedule_steps("2x", "coco", 16) == 180_000
    assert schedule_steps("1x", "voc", 4) == 72_000


@pytest.mark.slow
def test_squares_are_learned(squares_voc, tmp_path: Path):
    train_split, test_split = (read_voc([str(squares_voc)], name) for name in ("trainval", "test"))
    made = detector("trained", name="resnet10t")
    made.roi_heads.score_thresh = 0.01
    trained = fit(made, train_split.images, tmp_path, steps=30, lr=0.02)
    first, last = sum(trained.losses[:6]) / 6, sum(trained.losses[-6:]) / 6
    found, _ = detect(made, test_split.images, Views(2, (64,)))
    precision = average_precision(test_split, found, "bbox")
    assert last < 0.7 * first
    assert precision.ap50 > 30
