"""The two ways in which a run ends badly, both told in one line. Imports nothing of tinyseed."""


class InputError(ValueError):
    """A user's mistake: a wrong argument or input. The command line ends with exit code 2.

    >>> str(InputError("--epochs", -1, "give a number of at least 1"))
    '--epochs: -1: give a number of at least 1'
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(" ".join(f"{field}: {value}: {remedy}".split()))


class RunError(RuntimeError):
    """The run failed for a reason that is not the arguments' (NaN loss, full disk). Exit code 1."""
