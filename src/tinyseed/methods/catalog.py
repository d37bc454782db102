"""All methods. A new one is a file beside this one, and a line here."""

from tinyseed.errors import InputError
from tinyseed.methods.base import MethodSpec
from tinyseed.methods.moco import MOCO_V1, MOCO_V2
from tinyseed.methods.seed import SEED
from tinyseed.methods.seed_moco import SEED_MOCO
from tinyseed.methods.simclr import SIMCLR
from tinyseed.methods.swav import SWAV
from tinyseed.settings.train import TrainSettings

METHODS: tuple[MethodSpec, ...] = (
    SEED,
    SEED_MOCO,
    MOCO_V1,
    MOCO_V2,
    SIMCLR,
    SWAV,
)


def pretrain_methods() -> dict[str, MethodSpec]:
    """The methods of `tinyseed pretrain` by name."""
    return {spec.name: spec for spec in METHODS if not spec.has_teacher}


def find_method(name: str) -> MethodSpec:
    """A method of `tinyseed pretrain` by its name.

    Raises:
        InputError: an unknown name.
    """
    known = pretrain_methods()
    if name not in known:
        raise InputError(name, f"give one of {', '.join(known)}", argument="method")
    return known[name]


def spec_of(settings: TrainSettings) -> MethodSpec:
    """The method that these settings are of."""
    return next(spec for spec in METHODS if spec.settings is type(settings))


def spec_of_command(command: object) -> MethodSpec | None:
    """The method of a run by the `command` of its config.json; None for an unknown one."""
    return next((spec for spec in METHODS if spec.command == command), None)
