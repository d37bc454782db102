"""The modules that evaluations are made of. They need torch, so each is imported when something of it is first used."""

from typing import TYPE_CHECKING

from tinyseed.lazy import lazy

if TYPE_CHECKING:
    import torch as torch

    from tinyseed.checkpoints import load as load
    from tinyseed.data import split as split
    from tinyseed.evaluation import classifier as classifier
    from tinyseed.evaluation import cost as cost
    from tinyseed.evaluation import features as features
    from tinyseed.evaluation import label_subset as label_subset
    from tinyseed.evaluation import logistic as logistic
    from tinyseed.evaluation import metrics as metrics
    from tinyseed.evaluation import neighbors as neighbors
    from tinyseed.evaluation import report as report
    from tinyseed.evaluation import run as run
    from tinyseed.evaluation import splits as splits
    from tinyseed.models import encoder as models
    from tinyseed.models import spec as spec
else:
    torch, split = lazy("torch", "tinyseed.data.split")
    load, models, spec = lazy("tinyseed.checkpoints.load", "tinyseed.models.encoder", "tinyseed.models.spec")
    own = ("classifier", "cost", "features", "label_subset", "logistic", "metrics", "neighbors")
    classifier, cost, features, label_subset, logistic, metrics, neighbors = lazy(
        *(f"tinyseed.evaluation.{name}" for name in own)
    )
    report, run, splits = lazy(*(f"tinyseed.evaluation.{name}" for name in ("report", "run", "splits")))
