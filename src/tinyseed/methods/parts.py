"""The modules that methods are made of. They need torch, so each is imported when something of it is first used."""

from typing import TYPE_CHECKING

from tinyseed.lazy import lazy

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
    from torch.nn import functional as functional

    from tinyseed import shapes as shapes
    from tinyseed.checkpoints import initial as initial
    from tinyseed.data import addressed as addressed
    from tinyseed.data import render as render
    from tinyseed.models import backbones as backbones
    from tinyseed.models import checkpointing as checkpointing
    from tinyseed.models import classified as classified
    from tinyseed.models import contract as contract
    from tinyseed.models import crops as crops
    from tinyseed.models import depthwise as depthwise
    from tinyseed.models import encoder as encoder
    from tinyseed.models import heads as heads
    from tinyseed.models import patches as patches
    from tinyseed.models import prototypes as prototypes
    from tinyseed.models import teacher as teacher
    from tinyseed.objectives import affinity as affinity
    from tinyseed.objectives import cluster as cluster
    from tinyseed.objectives import compress as compress
    from tinyseed.objectives import contrast as contrast
    from tinyseed.objectives import kmeans as clusters
    from tinyseed.objectives import queue as queues
    from tinyseed.objectives import regression as regression
    from tinyseed.objectives import seed as seed
else:
    numpy, torch, functional, shapes = lazy("numpy", "torch", "torch.nn.functional", "tinyseed.shapes")
    addressed, render, initial = lazy(
        "tinyseed.data.addressed", "tinyseed.data.render", "tinyseed.checkpoints.initial"
    )
    backbones, checkpointing, classified, contract, depthwise = lazy(
        *(
            f"tinyseed.models.{name}"
            for name in ("backbones", "checkpointing", "classified", "contract", "depthwise")
        )
    )
    crops, encoder, heads, patches, prototypes, teacher = lazy(
        *(
            f"tinyseed.models.{name}"
            for name in ("crops", "encoder", "heads", "patches", "prototypes", "teacher")
        )
    )
    affinity, cluster, clusters, compress, contrast = lazy(
        *(f"tinyseed.objectives.{name}" for name in ("affinity", "cluster", "kmeans", "compress", "contrast"))
    )
    queues, regression, seed = lazy(
        *(f"tinyseed.objectives.{name}" for name in ("queue", "regression", "seed"))
    )
