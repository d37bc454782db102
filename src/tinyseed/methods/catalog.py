"""All methods. A new one is a file beside this one, and a line here."""

from collections.abc import Mapping, Sequence

from tinyseed.errors import InputError
from tinyseed.methods.base import MethodSpec
from tinyseed.methods.compress import COMPRESS
from tinyseed.methods.contrastive import CONTRASTIVE
from tinyseed.methods.kmeans import KMEANS
from tinyseed.methods.moco import MOCO_V1, MOCO_V2
from tinyseed.methods.online_clustering import ONLINE_CLUSTERING
from tinyseed.methods.regress import REGRESS
from tinyseed.methods.seed import SEED
from tinyseed.methods.seed_moco import SEED_MOCO
from tinyseed.methods.simclr import SIMCLR
from tinyseed.methods.swav import SWAV
from tinyseed.settings.train import TrainSettings

METHODS: tuple[MethodSpec, ...] = (
    SEED,
    REGRESS,
    KMEANS,
    ONLINE_CLUSTERING,
    CONTRASTIVE,
    COMPRESS,
    SEED_MOCO,
    MOCO_V1,
    MOCO_V2,
    SIMCLR,
    SWAV,
)


def pretrain_methods() -> dict[str, MethodSpec]:
    """The methods of `tinyseed pretrain` by name."""
    return {spec.name: spec for spec in METHODS if not spec.has_teacher}


def distill_methods() -> dict[str, MethodSpec]:
    """The methods of `tinyseed distill` by name; the first is the one that it runs by default."""
    found = [spec for spec in METHODS if spec.has_teacher]
    return {spec.name: spec for spec in sorted(found, key=lambda spec: not spec.default)}


def find_method(name: str, known: Mapping[str, MethodSpec]) -> MethodSpec:
    """A method by its name.

    Args:
        name: as it was given.
        known: the methods of the verb.

    Raises:
        InputError: an unknown name.
    """
    if name not in known:
        raise InputError(name, f"give one of {', '.join(known)}", argument="method")
    return known[name]


def find_methods(names: Sequence[str], known: Mapping[str, MethodSpec]) -> list[MethodSpec]:
    """Several methods by their names, which differ; without a name the first that is known.

    Raises:
        InputError: an unknown name, or one that is there twice.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(" ".join(names), "give each value once", argument="method")
    return [find_method(name, known) for name in names or list(known)[:1]]


def spec_of(settings: TrainSettings) -> MethodSpec:
    """The method that these settings are of."""
    return next(spec for spec in METHODS if spec.settings is type(settings))


def spec_of_command(command: object) -> MethodSpec | None:
    """The method of a run by the `command` of its config.json; None for an unknown one."""
    return next((spec for spec in METHODS if spec.command == command), None)
