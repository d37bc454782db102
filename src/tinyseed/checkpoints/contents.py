"""What a file is by its first bytes, whatever it is called; one that is no checkpoint is refused as what it is."""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tinyseed.errors import InputError

Format = Literal["safetensors", "torch", "index"]
"""A safetensors file; what torch.save wrote (a zip archive, or pickles in a row); the list of a checkpoint's shards."""

FIRST_BYTES = 4096
"""As many as the recognition of a file looks at; the directory of a zip archive is at its end."""

_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which files of torch.save begin that are not zip archives, as a pickle writes it."""
_LONGEST_HEADER = 100_000_000
"""Of a safetensors file, as in its specification."""
_SPARE = 256 * 2**20
"""Bytes that a tensor may claim beyond the file's size: as much as the largest tensors of networks take."""


class _Sign(NamedTuple):
    """First bytes of a kind of files that are no checkpoints, where they stand, what it is, and what to do."""

    first: bytes
    what: str
    remedy: str = "give the checkpoint itself"
    at: int = 0


_UNPACK = "unpack it, and give the checkpoint in it"
_CONVERT = "convert its weights to PyTorch's names and save them with torch.save or safetensors"
_SIGNS = (
    _Sign(b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "run: git lfs pull"),
    _Sign(b"\x89HDF\r\n", "an HDF5 file (Keras, TensorFlow or MATLAB)", _CONVERT),
    _Sign(b"GGUF", "a GGUF file (llama.cpp)", _CONVERT),
    _Sign(b"TFL3", "a TensorFlow Lite model", _CONVERT, at=4),
    _Sign(
        b"\x93NUMPY", "a NumPy array", "save a state dict: torch.save({name: torch.from_numpy(array)}, OUT)"
    ),
    _Sign(b"MATLAB 5.0", "a MATLAB file", _CONVERT),
    _Sign(
        b"\x1f\x8b", "compressed with gzip", "unpack it (gunzip, or tar xzf), and give the checkpoint in it"
    ),
    _Sign(b"BZh", "compressed with bzip2", _UNPACK),
    _Sign(b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    _Sign(b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    _Sign(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    _Sign(b"Rar!", "a RAR archive", _UNPACK),
    _Sign(b"ustar", "a tar archive", _UNPACK, at=257),
    _Sign(b"\x89PNG", "an image (PNG)"),
    _Sign(b"\xff\xd8\xff", "an image (JPEG)"),
    _Sign(b"GIF8", "an image (GIF)"),
    _Sign(b"II*\0", "an image (TIFF)"),
    _Sign(b"MM\0*", "an image (TIFF)"),
    _Sign(b"WEBP", "an image (WebP)", at=8),
    _Sign(b"ftyp", "a video or an image (MP4, HEIF)", at=4),
    _Sign(b"%PDF", "a PDF document"),
    _Sign(b"PAR1", "a Parquet file", "give it as data"),
    _Sign(b"ARROW1", "an Arrow file", "give it as data"),
    _Sign(b"SQLite format 3", "a SQLite database"),
    _Sign(b"\x7fELF", "a program or library"),
    _Sign(b"\x08\x01\x12", "a TensorFlow SavedModel or a Core ML model", _CONVERT),
)

_ONNX = re.compile(rb"\x08[\x02-\x20][\x12\x1a\x22\x28\x32\x3a\x42]")
"""The format's version, then any other of its fields."""
_MARKUP = re.compile(r"<[a-z!?]", re.IGNORECASE)
_TITLE = re.compile(r"<(?:title|code|message)[^>]*>\s*([^<]*)", re.IGNORECASE)


def recognize(path: Path) -> Format:
    """How a checkpoint file is to be read.

    Raises:
        InputError: it is missing, not a file, empty, incomplete, or something else than a checkpoint.
    """
    try:
        if path.is_dir():
            raise InputError(path, "is a folder; give a file in it")
        if not path.exists():
            raise InputError(path, "no such file")
        if not path.is_file():  # reading a pipe would wait for ever
            raise InputError(path, "is a pipe, socket or device; give a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(FIRST_BYTES)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error
    if first.startswith(b"PK"):
        _require_torch_archive(path)
        return "torch"
    try:
        return recognize_first(first, size)
    except ValueError as error:
        raise InputError(path, str(error)) from error


def recognize_first(first: bytes, size: int | None = None) -> Format:
    """How a file that begins so is to be read, as far as its beginning shows.

    Args:
        first: its first `FIRST_BYTES` bytes, or all of a shorter file.
        size: of the file; None where it is not known.

    Raises:
        ValueError: it is not a checkpoint; says what it is and what to do.
    """
    if not first:
        raise ValueError("cannot be read as a checkpoint (it is empty); download or save it again")
    if not any(first) and len(first) > 1:
        raise ValueError(
            "begins with zeros only, as a file whose download was interrupted; download it again"
        )
    if first.startswith(b"PK\3\4") or _TORCH_MAGIC in first[:20]:
        return "torch"
    if first[8:9] == b"{" and _text(first[:8]) is None:
        _require_whole_header(int.from_bytes(first[:8], "little"), size)
        return "safetensors"
    if _is_index(first):
        return "index"
    what, remedy = _name(first)
    raise ValueError(f"is {what}, not a checkpoint; {remedy}")


def _require_whole_header(length: int, size: int | None) -> None:
    if length > _LONGEST_HEADER:
        raise ValueError(
            "cannot be read as a safetensors file (its header is too long); download or save it again"
        )
    if size is not None and length + 8 > size:
        why = f"its header has {length:,} bytes, the file {size:,}"
        raise ValueError(f"cannot be read as a safetensors file (incomplete: {why}); download it again")


def _is_index(first: bytes) -> bool:
    return first.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b'"weight_map"' in first


def _name(first: bytes) -> tuple[str, str]:
    """What a file is that is no checkpoint, and what to do."""
    for sign in _SIGNS:
        if first.startswith(sign.first, sign.at):
            return sign.what, sign.remedy
    if _ONNX.match(first):
        return "an ONNX model", "give the PyTorch checkpoint that it was exported from"
    if first[:1] == b"\x80" and first[1:2] <= b"\x05":
        remedy = "load it with the code that wrote it, and save only the tensors: torch.save(state_dict, OUT)"
        return "a pickle that torch.save did not write, which may hold code", remedy
    text = _text(first)
    if text is None:
        return f"a file of unknown kind (it begins with {first[:8].hex(' ')})", "download or save it again"
    return _name_text(text)


def _name_text(text: str) -> tuple[str, str]:
    if _MARKUP.match(text):
        found = _TITLE.search(text)
        title = f" ({' '.join(found[1].split())[:80]})" if found and found[1].strip() else ""
        remedy = "the download was refused or needs a sign-in: download it in a browser and give the file"
        return f"a web page{title}", remedy
    if text[:1] in ("{", "["):
        return "a JSON file", "give the file with the weights, which is often beside it"
    return f"a text file ({' '.join(text.split())[:40]!r})", "give the checkpoint itself"


def _text(first: bytes) -> str | None:
    """The beginning of a text file; None where it is not one."""
    encoding = "utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = first[: len(first) - len(first) % 2].decode(
            encoding, "ignore" if len(first) == FIRST_BYTES else "strict"
        )
    except UnicodeDecodeError:
        return None
    odd = sum(not (each.isprintable() or each in "\r\n\t\f\x1b") for each in text)
    return text.lstrip() if odd * 20 <= len(text) else None


def _require_torch_archive(path: Path) -> None:
    """A zip archive as torch.save writes it: whole, not compressed, with a pickle, and without code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        why = "incomplete or damaged: the end of its zip archive is missing"
        raise InputError(
            path, f"cannot be read as a checkpoint ({why}); download or save it again"
        ) from error
    names = [entry.filename for entry in entries]
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner:
        remedy = "save its weights: torch.save(torch.jit.load(FILE).state_dict(), OUT)"
        raise InputError(path, f"is a TorchScript archive, which is code; {remedy}")
    if any("serialized_exported_program" in name or name.startswith("models/") for name in inner) or (
        "archive_format" in inner
    ):
        remedy = "save its weights: torch.save(torch.export.load(FILE).state_dict, OUT)"
        raise InputError(path, f"is a program of torch.export, which is code; {remedy}")
    if "data.pkl" not in inner:
        what, remedy = _archive(names)
        raise InputError(path, f"is {what}, not a checkpoint; {remedy}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(path, "is a compressed zip archive, which torch.save does not write; save it again")


def _archive(names: list[str]) -> tuple[str, str]:
    if names and all(name.endswith(".npy") for name in names):
        remedy = "save a state dict: torch.save({name: torch.from_numpy(array)}, OUT)"
        return f"a NumPy archive of {len(names)} arrays", remedy
    if "model.weights.h5" in names:
        return "a Keras model", _CONVERT
    if "[Content_Types].xml" in names:
        return "an Office document", "give the checkpoint itself"
    listed = ", ".join(name[:60] for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"a zip archive of other files ({listed or 'none'})", _UNPACK


def shards(path: Path) -> list[Path]:
    """The files that the index of a checkpoint in several files lists; they are beside it.

    Raises:
        InputError: it is not such an index, or a file is missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(path, "cannot be read as the index of a checkpoint; download it again") from error
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                path, f"is an index that lists {name!r}, which is not the name of a file beside it"
            )
        if not (path.parent / name).is_file():
            remedy = f"put them beside it ({len(names)} in all), or give one file with all tensors"
            raise InputError(path, f"lists the files of a checkpoint, and {name} is not there; {remedy}")
        files.append(path.parent / name)
    return files


def refuse_false_sizes(content: object, path: Path) -> None:
    """Refuse tensors that are far larger than the file that they come from.

    A few bytes can stand for a tensor of any size (a stride of 0, a dimension of 0 beside a large one), and heads are
    built by the sizes of tensors.

    Raises:
        InputError: names the tensor.
    """
    size = path.stat().st_size
    for name, tensor in _tensors(content):
        if tensor.is_nested:  # it has no shape
            raise InputError(path, f"cannot be used: {name!r} is a nested tensor; save plain ones")
        claimed = _claimed(tensor)
        if claimed > size + _SPARE:
            why = f"{name!r} claims {claimed / 2**20:,.0f} MiB, the file has {size / 2**20:,.1f} MiB"
            raise InputError(
                path, f"holds a tensor larger than itself ({why}); save it with contiguous tensors"
            )


def _claimed(tensor: Tensor) -> int:
    return math.prod(max(side, 1) for side in tensor.shape) * tensor.element_size()


def _tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in what a file holds, each under the keys that lead to it."""
    waiting: list[tuple[str, object]] = [(name, content)]
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # a pickle may hold itself
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), entry) for key, entry in entries]


def why_unusable(tensor: Tensor) -> str | None:
    """What keeps a tensor from being the weights of a network; None where nothing does.

    >>> why_unusable(torch.ones(2)), why_unusable(torch.ones(2, device="meta"))
    (None, 'has no values (it is on the meta device)')
    """
    if tensor.layout is not torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}); save it as a dense tensor"
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    if tensor.is_quantized:
        return "is quantized; dequantize it"
    if tensor.is_complex():
        return "holds complex numbers"
    if tensor.is_floating_point() and not bool(torch.isfinite(_at_least_half(tensor)).all()):
        return "holds NaN or infinite numbers; use an earlier checkpoint, or download it again"
    return None


def _at_least_half(tensor: Tensor) -> Tensor:
    """Numbers of eight bits, for which torch has few operations, as larger ones."""
    return tensor.float() if tensor.element_size() == 1 else tensor
