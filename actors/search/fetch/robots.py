"""robots.txt as RFC 9309 reads it. Pure.

The standard library's parser takes the first rule that matches, knows no wildcards within paths and does not merge
groups, so this is a parser of its own. It keeps the rules for one product token only. Section numbers are the RFC's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

MAX_BYTES = 500 * 1024  # section 2.5: at least this much is parsed; what follows is not read

_TOKEN = re.compile(r"[A-Za-z_-]+")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BARE_PERCENT = re.compile(rb"%(?![0-9A-F]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SAFE = "!#&'()+,/:;=?@[]~%"  # stays as it is; `*` and `$` are escaped, since rules give them a meaning


@dataclass(frozen=True)
class Rule:
    """`pieces`: the path between the wildcards; `anchored`: whether it must end where the last piece does."""

    pieces: tuple[str, ...]
    anchored: bool
    allows: bool
    length: int

    def matches(self, path: str) -> bool:
        first, *rest = self.pieces
        if not path.startswith(first):
            return False
        if not rest:
            return not self.anchored or len(path) == len(first)
        at = len(first)
        *middle, last = rest
        for piece in middle:
            found = path.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        if self.anchored:
            return len(path) - len(last) >= at and path.endswith(last)
        return path.find(last, at) >= 0


@dataclass(frozen=True)
class RobotRules:
    """The rules of one site for one product token, most specific first, allowing ones before equals."""

    rules: tuple[Rule, ...] = ()

    def allows(self, path: str) -> bool:
        """Whether `path` (with its query, as in the request) may be fetched (section 2.2.2)."""
        path = normalised(path)
        if path == "/robots.txt" or path.startswith("/robots.txt?"):
            return True
        return next((rule.allows for rule in self.rules if rule.matches(path)), True)

    @property
    def weight(self) -> int:
        """About how many bytes are kept in memory."""
        return sum(200 + rule.length + 60 * len(rule.pieces) for rule in self.rules)


ALLOW_ALL = RobotRules()
DISALLOW_ALL = RobotRules((Rule(("",), False, False, 0),))


def parse(body: bytes, product: str) -> RobotRules:
    """The rules in `body` for `product`: of all groups that name it, else of all groups for `*` (section 2.2.1)."""
    own: dict[tuple[bool, str], Rule] = {}
    general: dict[tuple[bool, str], Rule] = {}
    named = False
    agents: list[str] = []
    after_rules = False
    for key, value in _records(body[:MAX_BYTES]):
        if key == "user-agent":
            if after_rules:
                agents, after_rules = [], False
            agents.append(_agent(value))
            named = named or agents[-1] == product.casefold()
        elif key in ("allow", "disallow"):
            after_rules = True
            if not value:
                continue  # an empty rule matches nothing
            allows = key == "allow"
            for table, token in ((own, product.casefold()), (general, "*")):
                if token in agents:
                    table.setdefault((allows, value), _rule(value, allows))
    chosen = own if named else general
    return RobotRules(tuple(sorted(chosen.values(), key=lambda rule: (-rule.length, not rule.allows))))


def normalised(path: str) -> str:
    """`path` with every octet spelt in one way: what needs no escape has none, all else has, in capitals."""
    return _spelt(path, _SAFE)


def _spelt(text: str, safe: str) -> str:
    octets = _ESCAPE.sub(_unreserved, text.encode("utf-8", errors="surrogateescape"))
    return quote_from_bytes(_BARE_PERCENT.sub(b"%25", octets), safe=safe)


def _unreserved(match: re.Match[bytes]) -> bytes:
    octet = int(match[1], 16)
    return bytes([octet]) if octet in _UNRESERVED else match[0].upper()


def _records(body: bytes):
    """Keys in lower case with their values, comments and what has no colon left out."""
    for raw in re.split(rb"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf")):
        line = raw.split(b"#", 1)[0]
        if b":" not in line:
            continue
        key, value = line.split(b":", 1)
        yield (
            key.strip().lower().decode("utf-8", errors="surrogateescape"),
            value.strip().decode("utf-8", errors="surrogateescape"),
        )


def _agent(value: str) -> str:
    if value == "*" or value.startswith(("* ", "*\t")):
        return "*"
    token = _TOKEN.match(value)
    return token[0].casefold() if token else ""


def _rule(value: str, allows: bool) -> Rule:
    anchored = value.endswith("$")
    if anchored:
        value = value[:-1]
    pieces = tuple(_spelt(re.sub(r"\*+", "*", value), _SAFE + "*").split("*"))
    length = sum(map(len, pieces)) + len(pieces) - 1 + anchored
    return Rule(pieces, anchored, allows, length)
