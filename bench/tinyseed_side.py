"""tinyseed's own training loop as one side of bench/end_to_end.py: `train` as it is, its steps reported.

    python bench/tinyseed_side.py '{"data": ["photos"], "out": "run", …}' [--fill] [--snapshots]

The first argument has the fields of `SeedSettings`. `--fill` fills the queue before the first step, so that steps cost
what they do later in a run; `--snapshots` keeps the student after each epoch.
"""

import argparse
import json
from pathlib import Path

import torch

from tinyseed.engine import train as loop
from tinyseed.engine.run import Run
from tinyseed.methods.seed import SeedSettings
from turns import Stamper


def main() -> None:
    parser = argparse.ArgumentParser(description="One side of bench/end_to_end.py; see there.")
    parser.add_argument("settings")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--snapshots", action="store_true")
    given = parser.parse_args()
    fields = json.loads(given.settings)
    settings = SeedSettings(**{name: as_setting(name, value) for name, value in fields.items()})
    report_steps(fill=given.fill, snapshots=given.snapshots)
    loop.train(settings, quiet=True)


def as_setting(name: str, value: object) -> object:
    """A value of JSON as the settings have it."""
    if isinstance(value, list):
        return tuple(value)
    return Path(str(value)) if name in ("out", "cache") else value


def report_steps(*, fill: bool, snapshots: bool) -> None:
    stamper, original = Stamper(), loop.train_step

    def train_step(trained, *rest):
        run: Run = (
            trained if isinstance(trained, Run) else trained[0]
        )  # before several runs shared a pass, a run
        if fill and run.step == 0:
            filled(run)
        outputs = original(trained, *rest)
        stamper.step()
        done, per_epoch = run.step + 1, run.plan.steps_per_epoch
        if snapshots and done % per_epoch == 0:
            with stamper.away():
                weights = run.method.encoder.backbone.network.state_dict()
                torch.save(
                    weights, run.folder.path.parent / f"{run.folder.path.name}-epoch-{done // per_epoch}.pth"
                )
        return outputs

    loop.train_step = train_step


def filled(run: Run) -> None:
    """Random unit rows, as the authors' queue begins."""
    queue, generator = run.method.queue, torch.Generator().manual_seed(0)
    while len(queue) < queue.size:
        rows = torch.randn(min(8192, queue.size), queue.dim, generator=generator)
        queue.push(torch.nn.functional.normalize(rows, dim=1)[: queue.size - len(queue)])


if __name__ == "__main__":
    main()
