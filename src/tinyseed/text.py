"""Text that came from outside - file names, labels, settings, URLs, other programs' messages - made safe to show.

Wherever text leaves tinyseed (the terminal, a page, a JSON file) it passes through a function of this file, and nowhere
before: the rest of the code works with the text as it is.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "…"
"""Stands for a part of a URL that may be a secret."""

LONGEST_WORD = 400
"""Characters of a text without spaces that a message shows; longer ones lose their middle."""
LONGEST_MESSAGE = 4000
"""Characters of a message."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>`]*[^\s\"'<>`.,:;)\]}]", re.IGNORECASE)
_WHOLE_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PUBLIC = re.compile(
    r"(id|file(name)?|name|path|dl|download|raw|export|confirm|format|rev(ision)?|ref|v|version|alt|resourcekey)",
    re.IGNORECASE,
)
"""Names of parameters whose values say which file is meant; the value of any other may be a key to it."""
_HASH = re.compile(r"sha256=[0-9a-f]{64}", re.IGNORECASE)

# Control, format (bidirectional and zero-width), private, surrogate and unassigned characters; line and paragraph ends.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def without_secrets(text: str) -> str:
    """A text whose URLs have no user, password, signature or token any more.

    The scheme, host, path and those parameters stay that say which file is meant.

    >>> without_secrets("cannot reach https://me:secret@host/a.pth?X-Amz-Signature=5f&id=7, try again")
    'cannot reach https://host/a.pth?X-Amz-Signature=…&id=7, try again'
    """
    return _URL.sub(lambda found: _public_url(found[0]), text) if "://" in text else text


def public(value: str) -> str:
    """A value without secrets; one that begins as a URL is one as a whole.

    >>> public("s3://key:se cret@bucket/a.pth"), public("runs/a")
    ('s3://bucket/a.pth', 'runs/a')
    """
    return _public_url(value) if _WHOLE_URL.match(value) else without_secrets(value)


def _public_url(url: str) -> str:
    if not re.search(r"[@?#;]", url):
        return url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # no address: perhaps a password with a slash in it
        return f"{url.partition('://')[0]}://{HIDDEN}"
    query = "&".join(_public_parameter(part) for part in parts.query.split("&")) if parts.query else ""
    fragment = parts.fragment if not parts.fragment or _HASH.fullmatch(parts.fragment) else HIDDEN
    path = re.sub(r";[^/]*", f";{HIDDEN}", parts.path)  # some servers take parameters behind a semicolon
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, query, fragment))


def _public_parameter(part: str) -> str:
    name, equals, _ = part.partition("=")
    if not equals:
        return HIDDEN
    return part if _PUBLIC.fullmatch(name) else f"{name}={HIDDEN}"


def escape(character: str) -> str:
    """A character as a Python literal writes it."""
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str, keep: str = "", escaped: Callable[[str], str] = escape) -> str:
    r"""A text in which characters that would not be seen, or would act on a terminal, are written as escapes.

    Args:
        text: any text.
        keep: control characters that stay.
        escaped: how a character is written.

    >>> visible("a\x1b[31mb\u202ec\nd")
    'a\\x1b[31mb\\u202ec\\nd'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if each in keep or unicodedata.category(each) not in _INVISIBLE else escaped(each)
        for each in text
    )


def shown(text: str, keep: str = "") -> str:
    """A text for the terminal: no secrets of URLs, nothing invisible.

    Args:
        text: any text.
        keep: control characters that stay, such as the line ends of a table.
    """
    return visible(without_secrets(text), keep)


def in_html(text: str) -> str:
    """A text for a page: as `shown`, and it stays text wherever it is put."""
    return html.escape(shown(text), quote=True)


def one_line(text: str) -> str:
    """A message in one line, with runs of spaces joined and long words shortened."""
    joined = " ".join(re.split(r"[ \t]+", shown(text.strip())))
    words = re.sub(
        rf"\S{{{LONGEST_WORD + 1},}}", lambda found: _without_middle(found[0], LONGEST_WORD), joined
    )
    return _without_middle(words, LONGEST_MESSAGE)


def _without_middle(text: str, length: int) -> str:
    """The beginning and the end of a text that is too long."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 1]}…{text[-end:]}"


def size_text(number: float) -> str:
    """Bytes in decimal units, as disks are sold.

    >>> size_text(7_480_000), size_text(512)
    ('7.5 MB', '512 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} bytes"
