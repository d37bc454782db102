"""tinyseed: train small vision models to reproduce the representation of big ones, without labels.

>>> import tinyseed
>>> tinyseed.auto_queue_size(4000)
1024
"""

import importlib
from typing import TYPE_CHECKING

from tinyseed.threads import prepare_threads

if TYPE_CHECKING:
    from tinyseed.api import describe_teacher, distill, evaluate, load, load_teacher, pretrain, run_study
    from tinyseed.errors import InputError, RunError
    from tinyseed.models.encoder import Encoder
    from tinyseed.models.teacher import Teacher
    from tinyseed.objectives.cluster import sinkhorn, swav_loss
    from tinyseed.objectives.contrast import info_nce, nt_xent
    from tinyseed.objectives.queue import Queue, auto_queue_size
    from tinyseed.objectives.seed import seed_loss
    from tinyseed.objectives.similarity import soft_lookup

__all__ = [
    "Encoder",
    "InputError",
    "Queue",
    "RunError",
    "Teacher",
    "auto_queue_size",
    "describe_teacher",
    "distill",
    "evaluate",
    "info_nce",
    "load",
    "load_teacher",
    "nt_xent",
    "pretrain",
    "run_study",
    "seed_loss",
    "sinkhorn",
    "soft_lookup",
    "swav_loss",
]

_MODULES = {
    "api": ("describe_teacher", "distill", "evaluate", "load", "load_teacher", "pretrain", "run_study"),
    "errors": ("InputError", "RunError"),
    "models.encoder": ("Encoder",),
    "models.teacher": ("Teacher",),
    "objectives.cluster": ("sinkhorn", "swav_loss"),
    "objectives.contrast": ("info_nce", "nt_xent"),
    "objectives.queue": ("Queue", "auto_queue_size"),
    "objectives.seed": ("seed_loss",),
    "objectives.similarity": ("soft_lookup",),
}
_MODULE = {name: module for module, names in _MODULES.items() for name in names}

prepare_threads()


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, since torch takes seconds to import."""
    if name not in _MODULE:
        raise AttributeError(f"module 'tinyseed' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinyseed.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
