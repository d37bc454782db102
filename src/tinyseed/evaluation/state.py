"""What a stopped evaluation has found out already, so that the same command goes on from there.

It lies in the cache, under a name that all its settings, the model's weights and the data decide; a finished
evaluation removes it. Imports data/cache.py and models/weights.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyseed.data.cache import cache_folder, digest
from tinyseed.files import write_text

Figures = dict[str, Any]
"""Figures by name, as JSON holds them."""

FORMAT = 2  # counts up when a former version's leftovers would be misread


class State:
    """A folder for one evaluation's finished parts and checkpoints."""

    def __init__(self, *decided_by: object) -> None:
        self.folder = cache_folder() / "evaluations" / digest(FORMAT, *decided_by)

    def path(self, name: str) -> Path:
        """Where a part may keep its checkpoint."""
        return self.folder / name

    def remember(self, name: str, compute: Callable[[], Figures]) -> Figures:
        """The figures of a part: those of the stopped run where it has finished this part, else computed."""
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            figures = compute()
        content = json.dumps(figures)
        write_text(path, content)
        return figures

    def clear(self) -> None:
        """The evaluation is done and written down."""
        shutil.rmtree(self.folder, ignore_errors=True)
