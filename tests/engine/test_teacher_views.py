"""Teacher and student at two resolutions, as the command line sets them; nothing is fetched."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tinyseed.engine.train import train
from tinyseed.errors import InputError
from tinyseed.methods.seed import SeedSettings

SMALL = {"epochs": 1, "batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}


def config(photos, out, **changes) -> SeedSettings:
    settings = {"teacher": "test_vit", "teacher_weights": "random", "student": "mobilenetv3_small_050"}
    return SeedSettings(data=(str(photos),), out=out, **(settings | SMALL | changes))


@pytest.mark.slow
def test_dinov2_teaches_from_a_local_file_at_a_multiple_of_its_patch(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    file = tmp_path / "dinov2.safetensors"
    save_file(network.state_dict(), file)
    assert load_file(file)["pos_embed"].shape == (1, 37 * 37 + 1, 384)
    out = tmp_path / "run"
    teacher = {"teacher": "vit_small_patch14_dinov2", "teacher_weights": str(file)}
    train(config(photos, out, **teacher), quiet=True)
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["teacher"]["image_size"] == 42  # 32 px, raised to a multiple of 14
    assert lineage["teacher"]["dim"] == 384
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0)
    plain.load_state_dict(load_file(out / "student.safetensors"), strict=True)


def test_a_teacher_may_see_more_than_its_student(photos, tmp_path):
    out = tmp_path / "run"
    summary = train(config(photos, out, teacher_image_size=64), quiet=True)
    assert json.loads((out / "lineage.json").read_text())["teacher"]["image_size"] == 64
    assert summary["steps"] == 6


def test_a_size_that_the_teacher_cannot_take_is_refused_with_one_that_it_can(photos, tmp_path):
    with pytest.raises(InputError, match=r"teacher_image_size=40: .*multiple of 16; give 48"):
        train(config(photos, tmp_path / "run", teacher_image_size=40), quiet=True)
    assert not (tmp_path / "run").exists()
