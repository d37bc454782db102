"""A file at a URL comes into the cache, once. Imports places and errors.

fsspec does the transfer: https://, s3://, gs://, memory://, and whatever else it has a file system for.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tinyseed.errors import InputError, RunError
from tinyseed.files import cache_folder

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://")
_FILE = "file://"
_PATIENCE = 30.0
"""Seconds that a silent server is waited for; a long transfer that moves is not cut off."""


def is_url(text: str) -> bool:
    """Whether a text names a place by its scheme.

    >>> is_url("s3://models/moco.pth.tar"), is_url("models/moco.pth.tar")
    (True, False)
    """
    return _URL.match(text) is not None


def local_file(url: str, field: str) -> Path:
    """The file at a URL, on this machine: fetched into the cache folder where it is not there yet.

    It is looked for again only when the cached file is deleted. `file://` is read where it lies.

    Args:
        url: scheme://…
        field: the flag that gave it, for errors.

    Raises:
        InputError: no such scheme or file, no network, or a package that the scheme needs is missing.
        RunError: it could not be written.
    """
    if url.startswith(_FILE):
        return Path(unquote(urlsplit(url).path))
    name = re.sub(r"[^\w.-]", "_", Path(unquote(urlsplit(url).path)).name) or "file"
    target = cache_folder() / "files" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not target.is_file():
        _fetch(url, target, field)
    return target


def _fetch(url: str, target: Path, field: str) -> None:
    import fsspec

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".fetching-")
        os.close(handle)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot be written ({error})") from error
    unfinished = Path(name)
    try:
        system, path = fsspec.core.url_to_fs(url, **_settings(url))
        system.get_file(path, str(unfinished))
        unfinished.replace(target)
    except ImportError as error:
        raise InputError(field, url, f"needs a package that is not installed ({error})") from error
    except FileNotFoundError as error:
        raise InputError(field, url, "no such file there") from error
    except Exception as error:  # a transfer fails in as many ways as there are file systems
        remedy = "fetch it by other means and give the file"
        raise InputError(field, url, f"cannot be fetched ({_why(error)}); {remedy}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _settings(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE, sock_read=_PATIENCE)
    return {"client_kwargs": {"timeout": timeout}}


def _why(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
