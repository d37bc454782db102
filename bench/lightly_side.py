"""LightlyTrain's distillation as one side of bench/end_to_end.py, run by the Python of its own environment.

    PYTHONPATH=src /path/to/env/bin/python bench/lightly_side.py '{"out": …}' [--snapshots FOLDER]

The first argument has the arguments of `lightly_train.pretrain`. Its usage reports are off, and nothing is downloaded.
"""

import argparse
import json
import os
from pathlib import Path

os.environ |= {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}

import torch

from tinyseed.torchvision_ops import ensure_torchvision
from turns import Stamper

ensure_torchvision()

import lightly_train  # noqa: E402  (pyright: only in its own environment)
from lightly_train._methods.method import Method  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="One side of bench/end_to_end.py; see there.")
    parser.add_argument("arguments")
    parser.add_argument("--snapshots", help="folder for the student after each epoch")
    given = parser.parse_args()
    arguments = json.loads(given.arguments)
    report_steps(Path(given.snapshots) if given.snapshots else None)
    lightly_train.pretrain(**arguments)


def report_steps(snapshots: Path | None) -> None:
    stamper, original = Stamper(), Method.on_train_batch_end

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        original(self, outputs, batch, batch_idx)
        stamper.step()
        if snapshots is not None and batch_idx + 1 == self.trainer.num_training_batches:
            with stamper.away():
                student = self.student_embedding_model.wrapped_model.get_model()
                torch.save(student.state_dict(), snapshots / f"epoch-{self.current_epoch + 1}.pth")

    Method.on_train_batch_end = on_train_batch_end


if __name__ == "__main__":
    main()
