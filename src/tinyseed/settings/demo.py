"""Settings of the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tinyseed.settings.base import SEEDS, Range, Settings


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """`tinyseed demo`: where to write, and how long to train."""

    out: Path = Path("tinyseed-demo")
    """Folder for the two runs, the table and the picture; whatever is finished there is reused."""
    minutes: float = 4.0
    """Total training time in minutes: half for the distilled student, half for the baseline without a teacher."""
    seed: int = 0
    """Seed of all random choices."""

    RANGES: ClassVar = {"minutes": Range(0.05, 24 * 60), "seed": SEEDS}
