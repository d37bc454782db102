"""Where a model comes from: data, teacher, command, software and hardware."""

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tinyseed.engine.data import RunData
from tinyseed.methods.catalog import spec_of
from tinyseed.models.backbones import Backbone
from tinyseed.models.teacher import Teacher, weights_digest
from tinyseed.settings.train import TrainSettings
from tinyseed.text import public

PACKAGES = ("tinyseed", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")


def lineage(
    settings: TrainSettings, data: RunData, teacher: Teacher | None, began_with: Backbone | None = None
) -> dict[str, Any]:
    """The content of lineage.json: enough to repeat the run, and to recognize the files that it was made from.

    Args:
        settings: of the run.
        data: its images.
        teacher: of a method that has one.
        began_with: the network before the first step; None where it is not known any more.
    """
    described: dict[str, Any] = {
        "command": ["tinyseed", *sys.argv[1:]],
        "method": spec_of(settings).command,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "given": list(settings.data),
            "fingerprint": data.source.fingerprint,
            "images": len(data.source),
            "trained_on": len(data.training),
            "held_out_images": len(data.held_out),
            "held_out": "10 % of the data" if not settings.val_data else list(settings.val_data),
            "held_out_fingerprint": data.held_out_source.fingerprint,
        },
        "software": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {"processor": _processor(), "threads": torch.get_num_threads(), "gpus": _gpus()},
    }
    if teacher is not None:
        described["teacher"] = {
            "given": teacher.spec,
            "digest": teacher.digest,
            "parameters": teacher.parameters_count,
            "dim": teacher.dim,
            "image_size": teacher.input.size,
            "mean": list(teacher.input.mean),
            "std": list(teacher.input.std),
            "interpolation": teacher.input.interpolation,
            "engine": teacher.engine,
        }
        if teacher.agreement:
            described["teacher"]["engine_agreement"] = teacher.agreement
    if settings.initial_weights is not None:
        described["initial_weights"] = {"given": public(settings.initial_weights)}
        if began_with is not None:
            described["initial_weights"]["digest"] = weights_digest(began_with.network.state_dict())
    return described


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
