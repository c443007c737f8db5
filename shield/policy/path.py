"""What a request path means for matching, and the templates it is matched against.

A path is normalised before anything looks at it, so that no spelling of a path slips past a limit: query and
fragment dropped, percent-decoded once, then folded (double slashes, "." and ".." segments), case kept.
Decoding comes before folding, so "/a/%2e%2e/b" and "/a%2Fb" fold as the server behind will see them. A
trailing slash is not significant.

The result is always text that UTF-8 can encode. Bytes that are no UTF-8 survive as upper-case "%XX" (RFC
3987, 3.2), whether they came percent-encoded or raw.

Not folded, because servers disagree about them: backslashes and ";parameters" are ordinary characters.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from shield.core import plain_end

# As much as common servers accept in a whole request line. A longer path is refused, never cut: a cut path
# could be padded until the part that a limit matches is gone.
MAX_PATH = 8_192
MAX_TEMPLATE = 1_024
MAX_SEGMENTS = 64

TEMPLATE_HELP = (
    'a path template such as "/orders/{id}" ({name} is one segment) or "/files/{rest...}" ({name...} at the '
    "end is any remainder, also none)"
)

_ABSOLUTE_FORM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\.\.\.)?\}")
_NOT_UTF8 = "shield.percent"


def normalise(path: str) -> str:
    """The path as matching sees it: starts with "/", no trailing slash but for the root itself.

    Takes a request target in origin form or absolute form ("http://host/a"). Raises ValueError for what is no
    text and for a path of more than MAX_PATH characters; every other text has a normal form.
    """
    end = plain_end(path)
    if 0 <= end <= MAX_PATH:
        return path if end == len(path) else path[:end]
    return _worked_on(path)


def _worked_on(path: str) -> str:
    if not isinstance(path, str):
        raise ValueError(f"path: expected text, not {type(path).__name__}")
    # The query goes first: a "?" or "#" that was percent-encoded belongs to the path.
    end = _first(path, "?", "#")
    if end >= 0:
        path = path[:end]
    if len(path) > MAX_PATH:
        raise ValueError(f"path: found {len(path)} characters; allowed: at most {MAX_PATH}")
    if path[:1] != "/":
        absolute = _ABSOLUTE_FORM.match(path)
        if absolute is not None:
            path = path[absolute.end() :]
    if "%" in path or not path.isascii():
        path = decode(path)
    return fold(path)


def decode(text: str) -> str:
    """Percent-decoded once. Other sequences stay; bytes that are no UTF-8 become "%XX"."""
    raw = unquote_to_bytes(_bytes_of(text))
    return raw.decode("utf-8", _NOT_UTF8)


def fold(path: str) -> str:
    """Without double slashes, dot segments and trailing slash; never climbs above the root. Idempotent."""
    if "//" not in path and "/." not in path and path[:1] == "/":
        return path[:-1] if path[-1] == "/" and len(path) > 1 else path
    folded: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if folded:
                folded.pop()
        elif segment not in ("", "."):
            folded.append(segment)
    return "/" + "/".join(folded)


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template. `segments`: literal text, or None for exactly one segment of any text."""

    segments: tuple[str | None, ...]
    rest: bool  # ends in {name...}: any remainder matches, also none


def parse_template(text: str) -> Template:
    """Reads "/orders/{id}" or "/files/{rest...}". Raises ValueError saying what was found and is allowed.

    A literal segment may be written percent-encoded or plain; it is compared with the normalised path.
    """
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"found a template of {len(text)} characters; allowed: at most {MAX_TEMPLATE}")
    if not text.startswith("/"):
        raise _wrong(text, 'it does not start with "/"')
    if "?" in text or "#" in text:
        raise _wrong(text, "a path has no query or fragment")
    written = text[1:].removesuffix("/").split("/") if text != "/" else []
    if len(written) > MAX_SEGMENTS:
        raise ValueError(f"found a template of {len(written)} segments; allowed: at most {MAX_SEGMENTS}")
    segments: list[str | None] = []
    names: set[str] = set()
    for at, segment in enumerate(written):
        parameter = _PARAMETER.fullmatch(segment)
        if parameter is None:
            segments.append(_literal(text, segment))
            continue
        name, rest = parameter.groups()
        if name in names:
            raise _wrong(text, f"{{{name}}} is there twice")
        names.add(name)
        if rest:
            if at != len(written) - 1:
                raise _wrong(text, f"{segment} is only possible at the end")
            return Template(tuple(segments), rest=True)
        segments.append(None)
    return Template(tuple(segments), rest=False)


def _literal(text: str, segment: str) -> str:
    if "{" in segment or "}" in segment:
        raise _wrong(text, f"{segment!r} is neither plain text nor a whole {{name}}")
    if "*" in segment:
        raise _wrong(text, "there is no '*': write {name} for one segment or {rest...} for the remainder")
    literal = decode(segment)
    if not literal:
        raise _wrong(text, "an empty segment")
    if "/" in literal or literal in (".", ".."):
        raise _wrong(text, f"{segment!r} never occurs in a normalised path")
    return literal


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"found {text!r} ({why}); allowed: {TEMPLATE_HELP}")


def _first(text: str, one: str, other: str) -> int:
    """The least index at which either character stands, or -1."""
    a, b = text.find(one), text.find(other)
    return max(a, b) if a < 0 or b < 0 else min(a, b)


def _bytes_of(text: str) -> bytes:
    """The text's bytes. What servers hand over as lone surrogates (surrogateescape) becomes bytes again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _percent(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"%{byte:02X}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_NOT_UTF8, _percent)
