"""Files at a URL, downloaded once into the cache.

fsspec does the transfer: https://, s3://, gs://, memory://, and whatever else it has a file system for.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tinyseed.errors import InputError, first_line
from tinyseed.files import cache_folder, digest, replacing

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://")
_FILE = "file://"
_PATIENCE = 30.0
"""Seconds to wait for a silent server; a long transfer that makes progress is not cut off."""


def is_url(text: str) -> bool:
    """Whether a text names a place by its scheme.

    >>> is_url("s3://models/moco.pth.tar"), is_url("models/moco.pth.tar")
    (True, False)
    """
    return _URL.match(text) is not None


def local_file(url: str) -> Path:
    """The file at a URL, on this machine: downloaded into the cache folder where it is not there yet.

    It is downloaded again only after the cached file is deleted. A `file://` URL is read in place.

    Raises:
        InputError: no such scheme or file, no network, or a package that the scheme needs is missing.
        RunError: it could not be written.
    """
    where = Path(unquote(urlsplit(url).path))
    if url.startswith(_FILE):
        return where
    name = re.sub(r"[^\w.-]", "_", where.name) or "file"
    target = cache_folder() / "files" / f"{digest(url, digits=16)}-{name}"
    if not target.is_file():
        with replacing(target, durable=False) as unfinished:
            _fetch(url, unfinished)
    return target


def _fetch(url: str, target: Path) -> None:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, **_settings(url))
        system.get_file(path, str(target))
    except ImportError as error:
        raise InputError(url, f"needs a package that is not installed ({error})") from error
    except FileNotFoundError as error:
        raise InputError(url, "no such file there") from error
    except Exception as error:  # a transfer fails in as many ways as there are file systems
        text = first_line(error)
        kind = type(error).__name__
        why = text if text == kind else f"{kind}: {text}"
        raise InputError(
            url, f"cannot be fetched ({why}); download it by other means and give the file"
        ) from error


def _settings(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE, sock_read=_PATIENCE)
    return {"client_kwargs": {"timeout": timeout}}
