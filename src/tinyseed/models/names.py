"""Which models there are, by name.

A name is timm's (`resnet18`, `resnet18.a1_in1k`, `timm/resnet18`), torchvision's (`torchvision/resnet18`), or that
of a network of `tinyseed.networks` (`swav/resnet50w2`, `seed/mobilenetv3_large`,
`moco/vit_small`).
"""

import difflib
from typing import Any, Literal, get_args

from tinyseed.errors import InputError
from tinyseed.networks.catalog import NETWORKS
from tinyseed.torchvision_ops import import_torchvision, import_without_compiler

Library = Literal["timm", "torchvision", "swav", "seed", "moco", "dinov3", "transformers"]
"""Where a network is from; those of transformers cannot be students, so no name begins with it."""
_LIBRARIES: dict[str, Library] = {library: library for library in get_args(Library)}

PACKAGES = dict.fromkeys(NETWORKS, "tinyseed")
"""The package that has a library's networks, where it is not one of that name."""

# Auxiliary heads that give several outputs in training, and weights that need more than their tensors to be loaded
# (MNASNet's version number). timm's models of these kinds have neither.
_EXCLUDED = ("googlenet", "inception_v3", "mnasnet")


def find_model(name: str) -> tuple[Library, str]:
    """Which library has a model, and its name there.

    Raises:
        InputError: no library has it; the closest names are suggested.
    """
    if is_model_name(name):
        library, _, plain = name.rpartition("/")
        return _LIBRARIES.get(library, "timm"), plain
    close = difflib.get_close_matches(name.removeprefix("timm/"), _candidates(name), n=3, cutoff=0.5)
    suggested = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "give a model of timm's, or torchvision/NAME, swav/NAME, seed/NAME, moco/NAME, dinov3/NAME"
    )
    raise InputError(name, f"unknown model; {suggested}")


def is_model_name(name: str) -> bool:
    """Whether a library has a model of this name."""
    library, _, plain = name.rpartition("/")
    if library in NETWORKS:
        return plain in NETWORKS[library]
    if library == "torchvision":
        return plain in torchvision_names()
    if library not in ("", "timm"):
        return False
    timm = import_timm()
    architecture = plain.partition(".")[0]
    known = architecture in timm.list_models()
    return known and (plain == architecture or plain in timm.list_pretrained())


def _candidates(name: str) -> list[str]:
    """Names that a mistyped one could have meant."""
    timm = import_timm()
    library = name.partition("/")[0]
    others = other_names()
    if library in ("torchvision", *NETWORKS):
        return [known for known in others if known.startswith(f"{library}/")]
    architecture = name.removeprefix("timm/").partition(".")[0]
    if timm.is_model(architecture):
        return timm.list_pretrained(f"{architecture}.*")
    return [*timm.list_models(), *others]


def import_timm() -> Any:  # noqa: ANN401  (a module)
    """The timm module; its import takes seconds, so it waits until it is needed."""
    import_torchvision()
    return import_without_compiler("timm")


def other_names() -> list[str]:
    """All models but timm's: `torchvision/…`, `swav/…`, `seed/…`, `moco/…`, `dinov3/…`."""
    libraries = {"torchvision": torchvision_names(), **NETWORKS}
    return [f"{library}/{known}" for library, models in libraries.items() for known in models]


def torchvision_names() -> list[str]:
    """Torchvision's classification models that can be backbones."""
    models = import_torchvision().models
    return [name for name in models.list_models(module=models) if not name.startswith(_EXCLUDED)]
