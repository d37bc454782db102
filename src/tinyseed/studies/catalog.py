"""All studies. A new one is a record in a file beside this one, and a line here."""

from tinyseed.errors import InputError
from tinyseed.studies.base import Study
from tinyseed.studies.paper import AT_PAPER_SCALE, EPOCHS, SSL, STRATEGIES, TEACHERS, TEMPERATURE
from tinyseed.studies.plus import SEED_PLUS

STUDIES: tuple[Study, ...] = (
    STRATEGIES,
    TEMPERATURE,
    TEACHERS,
    SSL,
    EPOCHS,
    SEED_PLUS,
    *AT_PAPER_SCALE,
)


def find_study(name: str) -> Study:
    """A study by its name.

    Raises:
        InputError: an unknown name.
    """
    for study in STUDIES:
        if study.name == name:
            return study
    known = ", ".join(study.name for study in STUDIES)
    raise InputError(name, f"unknown study; give one of {known}", argument="study")


def listing() -> str:
    """All studies: name, a line about it, and its source."""
    return "\n\n".join(
        f"{study.name}  (tinyseed recipes run)\n  {study.about}\n  {study.source}" for study in STUDIES
    )


def sheet(study: Study) -> str:
    """A study for the terminal: a command line, what it is, its rows, and what is published for them."""
    command = f"tinyseed recipes run {study.name} --data train/ --test-data test/ --out studies/{study.name}"
    if any(row.method is not None and row.teacher is None for row in study.rows):
        command += " --teacher runs/teacher"
    width = max(len(row.name) for row in study.rows)
    rows = []
    for row in study.rows:
        published = row.expected
        figure = "" if published is None else f"  [{published.top1:g} % top-1: {published.source}]"
        rows.append(f"  {row.name:<{width}}  {row.label}{figure}")
    common = " ".join(f"{name}={value}" for name, value in study.common.items())
    lines = [command, "", study.about, "", study.source, "", "rows:", *rows, ""]
    return "\n".join([*lines, f"student {study.student}, {study.budget} for each cell, {common}"])
