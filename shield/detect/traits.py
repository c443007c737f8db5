"""Traits: what a request target or a user agent looks like, as one bit each.

A trait is a fact that `[[detector]] on = { trait = [...] }` can ask for and that method, path and status do not say:
that a target names a file nobody should ask for, that a query holds a piece of SQL, that an agent calls itself a
scanner. The words that are looked for stand in traits.toml.

A target is whatever stood between method and protocol: path and query, an absolute URL, or, of a request line that is
none, all of its text. Reading one takes a few microseconds; the compiled detectors remember what they asked for.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from typing import Final
from urllib.parse import unquote

TARGET_TRAITS: Final = (
    "static",
    "numeric-query",
    "random-name",
    "traversal",
    "sql-injection",
    "script-injection",
    "admin-interface",
    "secret-file",
    "backup-file",
    "web-shell",
    "wordpress",
    "author-query",
    "login",
    "page-login",
    "absolute-target",
    "exploit-path",
    "encoded-climb",
    "account-lookup",
    "exploit-payload",
    "encoded-end",
    "sap-interface",
    "xmlrpc",
)
AGENT_TRAITS: Final = ("scanner-agent", "exploit-payload")
TRAITS: Final = (*TARGET_TRAITS, "scanner-agent")
BIT: Final = {name: 1 << at for at, name in enumerate(TRAITS)}

# Longer targets are read as far as this: what an attacker pads must not take long.
MAX_READ: Final = 4_096

_words = tomllib.loads(files("shield.detect").joinpath("traits.toml").read_text(encoding="utf-8"))
_STATIC = frozenset(_words["static"])
_ADMIN_ANYWHERE = frozenset(_words["admin_anywhere"])
_ADMIN_FIRST = frozenset(_words["admin_first"])
_ADMIN_BEGINS = tuple(_words["admin_begins"])
_SECRET_NAMES = frozenset(_words["secret_names"])
_SECRET_FOLDERS = frozenset(_words["secret_folders"])
_BACKUP = frozenset(_words["backup_extensions"])
_SCRIPTS = frozenset(_words["script_extensions"])
_SHELL_NAMES = frozenset(_words["shell_names"])
_LOGIN = frozenset(_words["login_names"])
_LOOKUP = frozenset(_words["lookup_names"])
_PAGE_LOGIN = tuple(_words["page_logins"])
_SAP = tuple(_words["sap_interfaces"])
_EXPLOITS = tuple(_words["exploits"])
_PAYLOADS = tuple(_words["payloads"])
_PAYLOAD_SHAPES = re.compile("|".join(_words["payload_shapes"]))
_EXPLOIT_SHAPES = re.compile("|".join(_words["exploit_shapes"]))
_SQL = re.compile(
    r"\bunion\s+(?:all\s+|distinct\s+)?select\b|\binformation_schema\b|\bload_file\s*\(|\binto\s+(?:out|dump)file\b"
    r"|\b(?:pg_)?sleep\s*\(|\bbenchmark\s*\(|\bwaitfor\s+delay\b|\bxp_cmdshell\b|\b(?:extractvalue|updatexml)\s*\("
    r"|\b(?:substr|substring|ascii|chr|char|hex|unhex|md5|concat|concat_ws|group_concat|distinct|upper|lower)\s*\("
    r"|,\s*null\s*,\s*null|selectchar\s*\(|'\s*(?:or|and)\s*'?\w+'?\s*=|\b(?:or|and)\s+\d+\s*=\s*\d+|\border\s+by\s+\d+"
    r"|;\s*(?:drop|insert|update|delete|select|shutdown)\b|'\s*--|\bhaving\s+\d+\s*=",
)
_SCRIPT = re.compile(
    r"<\s*/?\s*(?:script|img|svg|iframe|body|input|table|object|embed|style|meta|frameset|frame|div|br|a|p|link|form|video"
    r"|audio|details|base|marquee|isindex)\b|javascript\s*:|vbscript\s*:|\b(?:alert|prompt|confirm|eval)\s*\("
    r"|\bon(?:error|load|click|mouseover|focus|toggle|pointerenter)\s*=|document\s*\.\s*(?:cookie|domain|write)|expression\s*\("
)
_TRAVERSAL = re.compile(
    r"\.\.[/\\]|[/\\]\.\.$|/etc/(?:passwd|shadow|groups?|hosts|issue)\b|/proc/self/|\bwin\.ini\b|\bboot\.ini\b|file:///"
    r"|/windows/system32/|/web-inf/"
)
_ENCODED_CLIMB = re.compile(r"/(?:\.%2e|%2e\.|%2e%2e|%%32%65%%32%65|%252e%252e|\.%%32%65)/")
_RANDOM_NAME = re.compile(r"(?=[0-9]*[A-Z])[A-Z0-9]{6}")
_AUTHOR = re.compile(r"(?:^|&)author=", re.IGNORECASE)
_SCANNER = re.compile(
    r"nikto|sqlmap|nmap|masscan|zgrab|nuclei|wpscan|acunetix|nessus|openvas|dirbuster|gobuster|feroxbuster|\bffuf\b|wfuzz"
    r"|w3af|arachni|havij|zmeu|morfeus|jorgee|netsparker|whatweb|skipfish|fimap|commix|joomscan|droopescan|\bdirb\b|grabber"
    r"|paros|webinspect|jaeles|fuzz faster|l9explore|l9tcpid|hydra|brutus|datacha0s|blackwidow|libredtail|interactsh",
    re.IGNORECASE,
)

_STATIC_BIT = BIT["static"]


def _segments_of_interest() -> frozenset[str]:
    """Words of which one has to be a segment of a path, for a path of ordinary characters to have a trait."""
    of_exploits = (re.split(r"[^a-z0-9_-]+", mark.strip("/")) for mark in (*_EXPLOITS, *_PAYLOADS))
    firsts = (next((part for part in parts if len(part) > 2), "") for parts in of_exploits)
    words = {*_ADMIN_ANYWHERE, *_ADMIN_FIRST, *_SECRET_NAMES, *_SECRET_FOLDERS, *_LOGIN, *_LOOKUP, *firsts, "shell"}
    words |= {part for path in _SAP for part in path.split("/") if part} | {"nwa"}
    return frozenset(word for word in words if re.fullmatch(r"[a-z0-9_+~,-]+", word))


# What makes a target worth reading, for the compiled detectors: (kind, text). 0: a whole segment; 1: the first letters
# of the first segment; 2: an extension that is static.
WORDS: Final = (
    *((0, word) for word in sorted(_segments_of_interest())),
    *((1, word[:3]) for word in _ADMIN_BEGINS),
    *((2, word) for word in sorted(_STATIC)),
)


def of_agent(text: str) -> int:
    """The bits of a User-Agent, or of a Referer."""
    bits = BIT["scanner-agent"] if _SCANNER.search(text[:MAX_READ]) else 0
    if "${" in text and _is_payload(unquote(text[:MAX_READ]).lower()):
        bits |= BIT["exploit-payload"]
    return bits


def _is_payload(decoded: str) -> bool:
    return any(mark in decoded for mark in _PAYLOADS) or _PAYLOAD_SHAPES.search(decoded) is not None


def of_target(target: str) -> int:
    """The bits of a target."""
    target = target[:MAX_READ]
    path, _, query = target.partition("?")
    bits = _of_query(query) if query else 0
    lowered = path.lower()
    folder, _, name = lowered.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if dot:
        bits |= _of_extension(stem, extension, lowered)
    elif not query and len(name) == 6 and _RANDOM_NAME.fullmatch(path, len(path) - 6):
        bits |= BIT["random-name"]
    if name in _SECRET_NAMES or name.startswith(("wp-config.php", ".wp-config.php", ".env.")):
        bits |= BIT["secret-file"]
    if name in _LOGIN:
        bits |= BIT["login"]
        if lowered.endswith(_PAGE_LOGIN):
            bits |= BIT["page-login"]
    elif name in _LOOKUP:
        bits |= BIT["account-lookup"]
    elif name == "xmlrpc.php":
        bits |= BIT["xmlrpc"]
    bits |= _of_segments(folder, name)
    if path[:1] != "/" and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        bits |= BIT["absolute-target"]
    if any(mark in lowered for mark in _SAP) or lowered == "/nwa":
        bits |= BIT["sap-interface"]
    decoded = target.lower()
    if "%" in target or "\\" in target or ".." in target or ":" in target or "//" in path or "/etc/" in lowered:
        decoded = unquote(unquote(target)).lower()
        if _TRAVERSAL.search(decoded):
            bits |= BIT["traversal"]
        if _ENCODED_CLIMB.search(lowered):
            bits |= BIT["encoded-climb"]
        if lowered.endswith("%3f"):
            bits |= BIT["encoded-end"]
    if any(mark in decoded for mark in _EXPLOITS) or _EXPLOIT_SHAPES.search(decoded):
        bits |= BIT["exploit-path"]
    if _is_payload(decoded):
        bits |= BIT["exploit-payload"]
    return bits


def _of_query(query: str) -> int:
    bits = 0
    if query.isdecimal() and query.isascii():
        return BIT["numeric-query"] if 7 <= len(query) <= 12 else 0
    if _AUTHOR.search(query):
        bits |= BIT["author-query"]
    if query.replace("=", "").replace("&", "").replace("_", "").isalnum():
        return bits
    decoded = unquote(query.replace("+", " "))
    if "%" in decoded:
        decoded = unquote(decoded)
    decoded = decoded.lower()
    if _SQL.search(decoded):
        bits |= BIT["sql-injection"]
    if _SCRIPT.search(decoded):
        bits |= BIT["script-injection"]
    return bits


def _of_extension(stem: str, extension: str, path: str) -> int:
    bits = 0
    if extension in _STATIC:
        bits |= _STATIC_BIT
    elif extension in _SCRIPTS:
        if (
            stem in _SHELL_NAMES
            or stem.endswith(("shell", "_sh", "-sh"))
            or "webshell" in stem
            or stem.startswith("c99")
        ):
            bits |= BIT["web-shell"]
        if extension == "php" and "/wp-" in path:
            bits |= BIT["wordpress"]
    elif extension in _BACKUP or extension[-1:] == "~":
        bits |= BIT["backup-file"]
    elif extension in ("txt", "md") and "/wp-content/plugins/" in path:
        bits |= BIT["wordpress"]
    if path.endswith("~"):
        bits |= BIT["backup-file"]
    return bits


def _of_segments(folder: str, name: str) -> int:
    bits = 0
    segments = folder.split("/")
    first = segments[1] if len(segments) > 1 else name
    if first in _ADMIN_FIRST or first.startswith(_ADMIN_BEGINS):
        bits |= BIT["admin-interface"]
    for segment in segments:
        if segment in _ADMIN_ANYWHERE:
            bits |= BIT["admin-interface"]
        elif segment[:1] == "." and segment in _SECRET_FOLDERS:
            bits |= BIT["secret-file"]
    if name in _ADMIN_ANYWHERE:
        bits |= BIT["admin-interface"]
    elif name in _SECRET_FOLDERS:
        bits |= BIT["secret-file"]
    return bits
