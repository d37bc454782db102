"""torchvision's data sets by name, from local files.

The files of a set are passed on undecoded; what torchvision keeps as arrays (CIFAR, MNIST …) is encoded losslessly
when it is read.
"""

import inspect
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.base import SourceFormat
from tinyseed.data.labels import distinct
from tinyseed.data.reading import read_file
from tinyseed.errors import InputError
from tinyseed.files import digest
from tinyseed.torchvision_ops import ensure_torchvision

_SPEC = re.compile(r"torchvision:(?P<name>\w+)(:(?P<split>[\w-]+))?(@(?P<folder>.+))?", re.IGNORECASE)
_SHAPE = "write torchvision:NAME, torchvision:NAME:SPLIT or torchvision:NAME:SPLIT@FOLDER"
_SUN397_SPLIT = re.compile(r"(?P<part>train|test)(-(?P<number>\d{2}))?")


class Named(NamedTuple):
    """The parts of a spec: torchvision's class, one of its splits ("": the class's default), its folder (`root`)."""

    name: str
    split: str
    folder: str

    @classmethod
    def of(cls, spec: str) -> "Named":
        """Take a spec apart.

        Raises:
            InputError: it has another form.
        """
        found = _SPEC.fullmatch(spec)
        if found is None:
            raise InputError(spec, _SHAPE)
        return cls(found["name"], found["split"] or "", found["folder"] or "data")


class TorchvisionSource:
    """One of torchvision's classification sets; made by `open_named`."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._title = f"torchvision:{named.name}" + (f":{named.split}" if named.split else "")
        self._dataset, takes_loader = _open(named)
        _check_labels(self._dataset, self._title)
        self._paths: list[Path] | None = None
        if takes_loader:
            pairs = sorted((Path(path), int(label)) for path, label in _items(self._dataset))
            if named.name == "SUN397" and named.split:
                pairs = _of_partition(pairs, named)
            self._paths = [path for path, _ in pairs]
            labels = [label for _, label in pairs]
        else:
            labels = _labels(self._dataset)
        self.labels: NDArray[np.int64] | None = np.array(labels, np.int64)
        self.classes = _classes(self._dataset, self.labels)
        if len(self.classes) < 2:  # a single class distinguishes nothing
            self.labels, self.classes = None, ()
        names = "\n".join(map(str, self._paths or ()))
        self.fingerprint = digest(self._title, Path(named.folder).absolute(), names, np.array(labels))

    def __len__(self) -> int:
        return len(self._dataset) if self._paths is None else len(self._paths)

    def read(self, index: int) -> bytes:
        """The encoded image file, or a lossless encoding of what torchvision has as an array."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._paths is not None:
            return read_file(self._paths[index])
        image = self._dataset[index][0]
        written = BytesIO()
        # A bitmap is the quickest to write and to read; it has no transparency and no 16 bits.
        image.save(written, "BMP" if image.mode in ("RGB", "L") else "PNG")
        return written.getvalue()

    def name(self, index: int) -> str:
        """The file's path, or the set and a number."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self._title}#{index}" if self._paths is None else str(self._paths[index])

    def __reduce__(self) -> tuple[object, ...]:
        return TorchvisionSource, (self._named,)


def open_named(spec: str) -> TorchvisionSource:
    """One of torchvision's classification data sets, from a local folder; nothing is downloaded.

    Args:
        spec: `torchvision:NAME[:SPLIT][@FOLDER]`. NAME is the class's in torchvision.datasets; SPLIT one of its splits,
            `train` or `test` where it has a flag for that; FOLDER its `root`, by default `data`. SUN397 has no
            splits in torchvision: `train`, `test`, `train-02` … are its published partitions, by their lists.

    Raises:
        InputError: no such set or split, the files are not there, or it has no class labels.

    >>> open_named("torchvision:CIFAR10:test@no-such-folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyseed.errors.InputError: torchvision:CIFAR10: is not in no-such-folder: ...
    """
    return TorchvisionSource(Named.of(spec))


def _open(named: Named) -> tuple[Any, bool]:
    """Torchvision's data set, and whether its items are paths instead of images."""
    ensure_torchvision()
    from torchvision import datasets

    kind: Any = getattr(datasets, named.name, None)
    settings = inspect.signature(kind).parameters if _is_kind_of(kind, datasets.VisionDataset) else {}
    if "root" not in settings or not ({"download", "split"} & settings.keys()):
        remedy = "is not a data set of torchvision; use a name from torchvision.datasets"
        raise InputError(named.name, remedy)
    given = _split_setting(named, kind)
    takes_loader = "loader" in settings or _is_kind_of(kind, datasets.ImageFolder)
    try:
        # NumPy warns of how the files of CIFAR were pickled in 2009.
        with warnings.catch_warnings(action="ignore"):
            opened = kind(named.folder, **given, **({"loader": Path} if takes_loader else {}))
    except ValueError as error:
        raise InputError(f"torchvision:{named.name}:{named.split}", str(error)) from error
    except ModuleNotFoundError as error:
        raise InputError(named.name, f"needs {error.name}: pip install {error.name}") from error
    except (RuntimeError, OSError) as error:
        call = ", ".join([repr(named.folder), *(f"{key}={value!r}" for key, value in given.items())])
        download = ", download=True" if "download" in settings else ""
        raise InputError(
            f"torchvision:{named.name}",
            f"is not in {named.folder}: run torchvision.datasets.{named.name}({call}{download}), or name its "
            f"folder after @ ({error})",
        ) from error
    return opened, takes_loader


def _is_kind_of(kind: object, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base)


def _split_setting(named: Named, kind: Any) -> dict[str, Any]:  # noqa: ANN401  (torchvision's class)
    settings = inspect.signature(kind).parameters
    value = f"torchvision:{named.name}:{named.split}"
    if not named.split or (named.name == "SUN397" and _SUN397_SPLIT.fullmatch(named.split)):
        return {}
    if "split" in settings:
        return {"split": named.split}
    if "train" not in settings:
        raise InputError(value, "this set has no splits: leave it out, or write lists of its files")
    if named.split not in ("train", "test"):
        raise InputError(value, "its splits are train and test")
    return {"train": named.split == "train"}


def _items(dataset: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    return [dataset[index] for index in range(len(dataset))]


def _check_labels(dataset: Any, title: str) -> None:  # noqa: ANN401
    item = dataset[0] if len(dataset) else ()
    if len(item) != 2 or not isinstance(item[1], int | np.integer):
        raise InputError(title, "has no image with one class: a classification set is needed")


def _labels(dataset: Any) -> list[int]:  # noqa: ANN401
    """The classes of all images; from the set's own list if it has one, since each item costs a decoding."""
    for kept in ("targets", "labels"):
        values = getattr(dataset, kept, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values).astype(np.int64).tolist()
    return [int(label) for _, label in _items(dataset)]


def _classes(dataset: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:  # noqa: ANN401
    """Names of the classes, or numbers if there are none."""
    named = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not named:
        return tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    return distinct([name if isinstance(name, str) else str(name[0]) for name in named])


def _of_partition(pairs: list[tuple[Path, int]], named: Named) -> list[tuple[Path, int]]:
    """The images that one of SUN397's published lists names, one "/a/abbey/sun_….jpg" per line."""
    found = _SUN397_SPLIT.fullmatch(named.split)
    assert found is not None  # anything else has been refused
    number = found["number"] or "01"
    file = f"{'Training' if found['part'] == 'train' else 'Testing'}_{number}.txt"
    folder = Path(named.folder) / "SUN397"
    lists = [place / file for place in (folder, folder / "Partitions", folder.parent / "Partitions")]
    path = next((path for path in lists if path.is_file()), None)
    if path is None:
        raise InputError(f"torchvision:SUN397:{named.split}", f"put {file} of Partitions.zip into {folder}")
    wanted = {
        line.strip().lstrip("/") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    }
    kept = [(image, label) for image, label in pairs if image.relative_to(folder).as_posix() in wanted]
    if len(kept) < len(wanted):
        raise InputError(path, f"{len(wanted) - len(kept)} of its {len(wanted)} images are not in {folder}")
    return kept


TORCHVISION = SourceFormat(
    "torchvision:NAME",
    matches=lambda spec, _: spec.lower().startswith("torchvision:"),
    open=lambda spec, _: open_named(spec),
)
