"""Modules that are imported when something of them is first used.

A method or an evaluation is one file: its settings stand beside the code that they are for. The command line reads the
settings to build its help, in a tenth of a second; importing torch would take seconds. So such a file names the modules
that need torch like this, and type checkers and import-linter see ordinary imports:

    if TYPE_CHECKING:
        import torch
        from tinyseed.objectives import contrast
    else:
        torch, contrast = lazy("torch", "tinyseed.objectives.contrast")
"""

from importlib import import_module
from types import ModuleType


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> object:
        return getattr(import_module(self.__name__), name)


def lazy(*names: str) -> tuple[ModuleType, ...]:
    """A stand-in for each module, which imports it at the first use of an attribute.

    >>> (fractions,) = lazy("fractions")
    >>> fractions.Fraction(1, 2)
    Fraction(1, 2)
    """
    return tuple(_Lazy(name) for name in names)
