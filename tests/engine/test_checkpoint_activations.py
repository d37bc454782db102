"""`checkpoint_activations` in whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tinyseed
from tinyseed.errors import InputError
from tinyseed.models import checkpointing


def run(photos, out, **changes):
    settings = {
        "epochs": 2,
        "batch_size": 16,
        "image_size": 32,
        "workers": 0,
        "precision": "32",
        "log_every": 1,
    }
    networks = {"teacher": "resnet10t", "teacher_weights": "random", "student": "mobilenetv3_small_050"}
    return tinyseed.distill(data=photos, out=out, **(settings | networks | changes))


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_the_same_to_the_bit_and_may_change_it_when_resumed(photos, tmp_path):
    run(photos, tmp_path / "plain")
    run(photos, tmp_path / "saving", checkpoint_activations=True)
    assert losses(tmp_path / "plain") == losses(tmp_path / "saving")
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("plain", "saving"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / "saving" / "summary.json").unlink()  # as if it had been stopped before its end
    run(photos, tmp_path / "saving", resume=True)


def test_a_network_without_blocks_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "checkpoint_blocks", lambda network: 0)
    with pytest.raises(InputError, match=r"checkpoint_activations.*no blocks"):
        run(photos, tmp_path / "run", checkpoint_activations=True)
