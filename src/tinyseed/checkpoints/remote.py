"""Files at a URL, downloaded once into the cache: whole, checked, and what they are meant to be, or not at all.

The standard library does https:// and http://, since it shows what the server says of the file; fsspec does s3://,
gs://, memory:// and whatever else it has a file system for.
"""

import base64
import binascii
import contextlib
import errno
import hashlib
import http.client
import queue
import re
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urldefrag, urlsplit, urlunsplit

from tinyseed.checkpoints.contents import FIRST_BYTES, recognize, recognize_first
from tinyseed.errors import InputError, first_line
from tinyseed.files import cache_folder, digest, replacing
from tinyseed.text import HIDDEN, public

Result = TypeVar("Result")

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE = "file://"
_PATIENCE = 30.0
"""Seconds to wait for a silent server; a long transfer that makes progress is not cut off."""
_SLOWEST = 1024
"""Bytes per second, over any `_PATIENCE` seconds, below which a transfer counts as stuck."""
_LARGEST = 64 * 2**30
"""Bytes of a download; no checkpoint of a vision model is nearly as large."""
_PIECE = 2**20
_STALE = 24 * 3600.0
"""Seconds after which an unfinished download belongs to no process any more."""
_REMEDY = "download it by other means and give the file"

# As torch.hub names files: the first digits of their SHA-256. Eight decimal digits are rather a date.
_NAMED_HASH = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.(?:pth|pt|bin|ckpt|safetensors|tar|pth\.tar)$")
_FRAGMENT = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)

_CHECKSUMS = (
    ("md5", r"^([\w+/=]+)$", "Content-MD5"),
    ("md5", r"\bmd5=([\w+/=]+)", "x-goog-hash", "Digest"),
    ("sha256", r"(?i:\bsha-256)=:?([\w+/=]+)", "Digest", "Repr-Digest", "Content-Digest"),
    ("sha256", r"^([\w+/]{43}=)$", "x-amz-checksum-sha256"),
)
"""Algorithm, how its digits are found (in base 64), and headers."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_url(text: str) -> bool:
    """Whether a text names a place by its scheme.

    >>> is_url("s3://models/moco.pth.tar"), is_url("models/moco.pth.tar")
    (True, False)
    """
    return _URL.match(text) is not None


def local_file(url: str) -> Path:
    """The file at a URL, on this machine: downloaded into the cache folder where it is not there yet.

    It is downloaded again only after the cached file is deleted. A `file://` URL is read in place. The checksum is
    compared with `#sha256=…` at the end of the URL, else with the digits in a name such as `resnet18-f37072fd.pth`, and
    with what the server states.

    Raises:
        InputError: no such scheme or file, no network, a package that the scheme needs is missing, or what came is
            incomplete, damaged or no checkpoint. Nothing is left in the cache.
        RunError: it could not be written.
    """
    plain, fragment = urldefrag(url)
    try:
        where = Path(unquote(urlsplit(plain).path))
    except ValueError as error:
        raise InputError(url, "is not a URL; give one such as https://host/file.pth") from error
    if plain.lower().startswith(_FILE):
        return where
    # Keys and signatures change from day to day, and stay out of the cache.
    name = re.sub(r"[^\w.-]", "_", where.name, flags=re.ASCII)[-80:] or "file"
    target = cache_folder() / "files" / f"{digest(_identity(plain), digits=16)}-{name}"
    expected = _expected(url, fragment, where.name)
    _sweep(target.parent)
    if not target.is_file():
        with replacing(target, durable=False) as unfinished:
            _download(plain, unfinished, expected)
            with _about(url):
                recognize(unfinished)
    elif _FRAGMENT.fullmatch(fragment) and _hash(target) != expected["sha256"]:
        remedy = f"is not the file that is in the cache; delete {target}"
        raise InputError(url, remedy)
    return target


def _identity(url: str) -> str:
    """What the cached file is named after: the URL, unless it holds a key to the file."""
    shown = public(url)
    parts = urlsplit(url)
    secret = re.compile(
        r"x-amz-|x-goog-|(access_?)?(key|token)|signature|sig|expires|policy|auth", re.IGNORECASE
    )
    if HIDDEN not in shown or secret.search(parts.query):
        return shown
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))


def _expected(url: str, fragment: str, name: str) -> Mapping[str, str]:
    """The beginning of the SHA-256 that the URL itself states."""
    stated = _FRAGMENT.fullmatch(fragment)
    if fragment.lower().startswith("sha256=") and stated is None:
        raise InputError(
            url, "gives a SHA-256 that does not have 64 hexadecimal digits; correct it or leave it out"
        )
    named = stated or _NAMED_HASH.search(name)
    return {} if named is None else {"sha256": named[1].lower()}


def _sweep(folder: Path) -> None:
    """Remove what downloads left that were killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.unfinished"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _about(url: str) -> Iterator[None]:
    """Errors about the downloaded file are about its URL."""
    try:
        yield
    except InputError as error:
        raise InputError(url, error.remedy) from None


@dataclass
class _Transfer:
    """What comes from a URL.

    Attributes:
        pieces: its content.
        size: in bytes; None where it is not known.
        digests: beginnings of checksums of the whole content, by algorithm, as the source states them.
    """

    pieces: Iterator[bytes]
    size: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


class _RefusedError(Exception):
    """Why a transfer is not accepted; not an error of the network."""


def _download(url: str, target: Path, expected: Mapping[str, str]) -> None:
    opened = _web(url) if url.lower().startswith(("http://", "https://")) else _file_system(url)
    try:
        with opened as transfer, target.open("wb") as file:
            _receive(transfer, file, expected)
    except InputError:
        raise
    except _RefusedError as error:
        raise InputError(url, str(error)) from None
    except ImportError as error:
        raise InputError(url, f"needs a package that is not installed ({error})") from error
    except FileNotFoundError:
        raise InputError(url, "no such file there") from None
    except OSError as error:
        if error.filename == str(target) or error.errno in _DISK:
            raise  # of this machine's disk
        raise InputError(url, f"cannot be fetched ({_why(error, url)}); {_REMEDY}") from None
    except Exception as error:  # noqa: BLE001  (a transfer fails in as many ways as there are file systems)
        # Not chained: such errors quote the URL with its secrets.
        raise InputError(url, f"cannot be fetched ({_why(error, url)}); {_REMEDY}") from None


def _why(error: BaseException, url: str) -> str:
    """An error in one line, without those parts of the URL that are secrets."""
    text, kind = first_line(error), type(error).__name__
    parts = urlsplit(url)
    for secret in (parts.netloc.rpartition("@")[0], parts.password, parts.query):
        text = text.replace(secret, HIDDEN) if secret else text
    return text if text == kind else f"{kind}: {text}"


def _receive(transfer: _Transfer, file: IO[bytes], expected: Mapping[str, str]) -> None:
    """Write what comes, and check it: its first bytes at once, size and checksums at the end."""
    digests = {**transfer.digests, **expected}
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in digests}
    first, total = b"", 0
    _require_size(transfer.size or 0)
    for piece in transfer.pieces:
        before, total = total, total + len(piece)
        _require_size(total)
        if before < FIRST_BYTES:
            first += piece[: FIRST_BYTES - before]
            if len(first) == FIRST_BYTES:
                _require_checkpoint(first, transfer.size)
        file.write(piece)
        for each in hashes.values():
            each.update(piece)
    if total < FIRST_BYTES:
        _require_checkpoint(first, total)
    if transfer.size not in (None, total):
        raise _RefusedError(f"came incomplete ({total:,} of {transfer.size:,} bytes); try again")
    for name, stated in digests.items():
        found = hashes[name].hexdigest()
        if not found.startswith(stated):
            why = f"its {name.upper()} is {found[: len(stated)]} instead of {stated}"
            raise _RefusedError(f"was damaged or replaced on its way ({why}); try again, or {_REMEDY}")


def _require_size(size: int) -> None:
    if size > _LARGEST:
        raise _RefusedError(
            f"has more than {_LARGEST / 2**30:.0f} GiB, which no checkpoint here needs; {_REMEDY}"
        )


def _require_checkpoint(first: bytes, size: int | None) -> None:
    try:
        kind = recognize_first(first, size)
    except ValueError as error:
        raise _RefusedError(str(error)) from error
    if kind == "index":
        raise _RefusedError(
            "lists the files of a checkpoint; download them all, and give this list beside them"
        )


@contextlib.contextmanager
def _file_system(url: str) -> Iterator[_Transfer]:
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    size = system.info(path).get("size")
    with system.open(path, "rb") as file:
        yield _Transfer(iter(lambda: file.read(_PIECE), b""), size if isinstance(size, int) else None)


@contextlib.contextmanager
def _web(url: str) -> Iterator[_Transfer]:
    redirects = _Redirects()
    request = _request(url)
    response = _within(4 * _PATIENCE, lambda: _open(redirects, request))
    with contextlib.closing(response):
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        pieces = _whole(_steadily(response), size)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding in ("", "identity"):
            yield _Transfer(pieces, size, _stated(response.headers) | _stated(redirects.headers))
        elif encoding in ("gzip", "x-gzip"):
            yield _Transfer(_gunzipped(pieces))
        else:
            raise _RefusedError(f"comes compressed in a way that was not asked for ({encoding}); {_REMEDY}")


def _request(url: str) -> urllib.request.Request:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    address = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    headers = {"User-Agent": "tinyseed", "Accept-Encoding": "identity"}
    request = urllib.request.Request(quote(address, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    if user:  # not sent on to where a redirect leads
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of redirects: the Hugging Face hub states a file's checksum there."""

    def __init__(self) -> None:
        self.headers = Message()

    def redirect_request(  # noqa: PLR0917  (as its base has it)
        self,
        req: urllib.request.Request,
        fp: Any,  # noqa: ANN401
        code: int,
        msg: str,
        headers: Any,  # noqa: ANN401
        newurl: str,
    ) -> urllib.request.Request | None:
        if headers.get("X-Linked-ETag"):
            self.headers = headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(redirects: _Redirects, request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        return urllib.request.build_opener(redirects).open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError from None
        meaning = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
        match error.code:
            case 401 | 403 | 407:
                why = f"is not given to everybody ({meaning}); correct the token, or {_REMEDY}"
            case code if code < 400:
                why = f"leads in circles (redirects, {meaning}); {_REMEDY}"
            case _:
                why = f"cannot be fetched (the server answers {meaning}); try again later, or {_REMEDY}"
        raise _RefusedError(why) from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, socket.gaierror):
            raise _RefusedError(f"cannot be fetched (no such host: {request.host}); {_REMEDY}") from None
        raise reason if isinstance(reason, OSError) else OSError(str(reason)) from None


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """What a call returns, if it returns in time: a server may send its headers byte by byte, for ever."""
    results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(call())
        except BaseException as error:  # noqa: BLE001  (raised again below)
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise _RefusedError(f"cannot be fetched (no answer within {seconds:.0f} s); {_REMEDY}") from None
    if isinstance(result, BaseException):
        raise result
    return result


def _steadily(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it comes; a server that sends next to nothing is left."""
    began, received = time.monotonic(), 0
    while piece := response.read1(_PIECE):
        yield piece
        received += len(piece)
        if time.monotonic() - began > _PATIENCE:
            if received < _SLOWEST * _PATIENCE:
                raise _RefusedError(f"comes too slowly ({received:,} bytes in {_PATIENCE:.0f} s); {_REMEDY}")
            began, received = time.monotonic(), 0


def _whole(pieces: Iterator[bytes], size: int | None) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        yield piece
    if size not in (None, total):
        raise _RefusedError(f"came incomplete ({total:,} of {size:,} bytes); try again")


def _gunzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    for piece in pieces:
        rest = piece
        while rest:
            yield unpacker.decompress(rest, _PIECE)
            rest = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise _RefusedError("came incomplete (its compression does not end); try again")


def _stated(headers: Message) -> dict[str, str]:
    """Checksums of the whole content that a server states, in hexadecimal digits by algorithm."""
    found: dict[str, str] = {}
    for algorithm, pattern, *names in _CHECKSUMS:
        for name in names:
            match = re.search(pattern, headers.get(name, ""))
            with contextlib.suppress(binascii.Error, ValueError):
                if match is not None:
                    found[algorithm] = base64.b64decode(match[1], validate=True).hex()
    tag = headers.get("ETag", "")
    linked = re.fullmatch(r'"([0-9a-f]{64})"', headers.get("X-Linked-ETag", ""))
    if linked:
        found["sha256"] = linked[1]
    # S3 and its like: the MD5 of what was uploaded at once, unless it is encrypted. Other servers' tags are theirs.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256" or any(
        name.lower().startswith("x-amz-server-side-encryption-customer") for name in headers
    )
    from_s3 = headers.get("Server") == "AmazonS3" or any(
        name.lower().startswith("x-amz-") for name in headers
    )
    if from_s3 and not encrypted and re.fullmatch(r'"[0-9a-f]{32}"', tag):
        found["md5"] = tag.strip('"')
    return found
