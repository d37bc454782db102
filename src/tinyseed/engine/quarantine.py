"""Images that could not be read are counted, listed, and become too many. Imports the run's files."""

from tinyseed.data.loader import BadRecord
from tinyseed.engine.run_folder import RunFolder
from tinyseed.errors import RunError

MOST_BAD = 0.1
"""The share of a data set that may be unreadable."""


class Quarantine:
    """Unreadable images of a run; each is listed once however often it is met."""

    def __init__(self, folder: RunFolder, images: int, processes: int = 1) -> None:
        self.folder = folder
        self.limit = MOST_BAD * images / processes
        self.known = set(folder.quarantined())

    def __len__(self) -> int:
        return len(self.known)

    def add(self, records: tuple[BadRecord, ...]) -> None:
        """Note unreadable images.

        Raises:
            RunError: more than 10 % of the data set is unreadable.
        """
        for record in records:
            if record.name in self.known:
                continue
            self.known.add(record.name)
            self.folder.add_to_quarantine(record)
            if len(self.known) > self.limit:
                raise RunError(
                    f"--data: more than {MOST_BAD:.0%} of the images cannot be read ({len(self.known)} until now, "
                    f"the last {record.name}: {record.reason}); all are listed in {self.folder.quarantine}"
                )
