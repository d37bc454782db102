"""The modules that methods are made of. They need torch, so each is imported when something of it is first used."""

from typing import TYPE_CHECKING

from tinyseed.lazy import lazy

if TYPE_CHECKING:
    import torch as torch
    from torch.nn import functional as functional

    from tinyseed import shapes as shapes
    from tinyseed.checkpoints import initial as initial
    from tinyseed.data import render as render
    from tinyseed.models import backbones as backbones
    from tinyseed.models import checkpointing as checkpointing
    from tinyseed.models import contract as contract
    from tinyseed.models import depthwise as depthwise
    from tinyseed.models import encoder as encoder
    from tinyseed.models import prototypes as prototypes
    from tinyseed.models import teacher as teacher
    from tinyseed.objectives import cluster as cluster
    from tinyseed.objectives import contrast as contrast
    from tinyseed.objectives import queue as queues
    from tinyseed.objectives import seed as seed
else:
    torch, functional, shapes, render, initial = lazy(
        "torch",
        "torch.nn.functional",
        "tinyseed.shapes",
        "tinyseed.data.render",
        "tinyseed.checkpoints.initial",
    )
    models = ("backbones", "checkpointing", "contract", "depthwise", "encoder", "prototypes", "teacher")
    backbones, checkpointing, contract, depthwise, encoder, prototypes, teacher = lazy(
        *(f"tinyseed.models.{name}" for name in models)
    )
    objectives = ("cluster", "contrast", "queue", "seed")
    cluster, contrast, queues, seed = lazy(*(f"tinyseed.objectives.{name}" for name in objectives))
