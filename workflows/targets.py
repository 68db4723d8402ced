"""What a trained agent is to reach in the embedded world, held against what it did. Pure.

The targets are those of the papers' claim: search when needed, with the right tool, better after RL than after SFT,
better than forced retrieval, with fewer searches. Each value is the mean of the seeds' values; none is made to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from workflows.evaluate.metrics import measure
from workflows.evaluate.rows import Row

Arms = Mapping[str, Sequence[Row]]  # the rows of one seed, by arm
Value = Callable[[Arms, int], float | None]  # of the rows, and the calls that the protocol allows
RAG = ("rag", "rag_rl", "rag_crop", "rag_crop_rl")
RAG_KINDS = ("looking", "head", "image", "text", "image_text")  # one image search and one text search are enough


@dataclass(frozen=True)
class Target:
    """`value` of one seed is to be at least (or at most) `bound`; None where it cannot be told."""

    says: str
    bound: float
    at_most: bool
    value: Value
    form: str = ".1%"


@dataclass(frozen=True)
class Finding:
    """A target and what was reached, by seed."""

    target: Target
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def reached(self) -> bool:
        return self.mean <= self.target.bound if self.target.at_most else self.mean >= self.target.bound


def findings(seeds: Sequence[Arms], max_calls: int, targets: Sequence[Target] | None = None) -> list[Finding]:
    """Of every target that can be told in every seed."""
    found = []
    for target in TARGETS if targets is None else targets:
        values = [target.value(arms, max_calls) for arms in seeds]
        told = tuple(value for value in values if value is not None)
        if told and len(told) == len(seeds):
            found.append(Finding(target, told))
    return found


def _of(arm: str, measured: str, label: str = "", kinds: Sequence[str] = (), tag: str = "") -> Value:
    """A measure of an arm, of the rows with this label, of these kinds, with this tag."""

    def value(arms: Arms, max_calls: int) -> float | None:
        rows = [
            row
            for row in arms.get(arm, ())
            if label in ("", row.label) and (not kinds or row.kind in kinds) and (not tag or tag in row.tags)
        ]
        return measure(rows, max_calls)[measured] if rows else None

    return value


def _less(a: Value, b: Value) -> Value:
    def value(arms: Arms, max_calls: int) -> float | None:
        one, other = a(arms, max_calls), b(arms, max_calls)
        return None if one is None or other is None else one - other

    return value


def _best_rag(measured: str, kinds: Sequence[str] = ()) -> Value:
    """Of the RAG arms that were played, the best one's."""

    def value(arms: Arms, max_calls: int) -> float | None:
        values = [v for arm in RAG if (v := _of(arm, measured, kinds=kinds)(arms, max_calls)) is not None]
        return max(values, default=None)

    return value


def _fewer_searches(arms: Arms, max_calls: int) -> float | None:
    """The share of forced retrieval's searches that the agent does not make."""
    own, forced = _of("rl", "searches")(arms, max_calls), _best_rag("searches")(arms, max_calls)
    return None if own is None or not forced else 1 - own / forced


def _times(arm: str) -> Value:
    """How many times as often as RL an arm searches on search-free questions."""

    def value(arms: Arms, max_calls: int) -> float | None:
        own, other = (_of(name, "search_ratio", label="free")(arms, max_calls) for name in ("rl", arm))
        return None if not own or other is None else other / own

    return value


_RL_EM = _of("rl", "exact_match")
_CROWDED = _of("rl", "exact_match", tag="crowded")
TARGETS = (
    Target("SFT: valid format", 0.98, False, _of("sft", "format_valid")),
    Target("SFT: exact match", 0.40, False, _of("sft", "exact_match")),
    Target("RL: exact match", 0.85, False, _RL_EM),
    Target("RL over SFT", 0.12, False, _less(_RL_EM, _of("sft", "exact_match"))),
    Target("RL over the best RAG arm", 0.10, False, _less(_RL_EM, _best_rag("exact_match"))),
    Target(
        "the same, on kinds that RAG can answer",
        -0.01,
        False,
        _less(_of("rl", "exact_match", kinds=RAG_KINDS), _best_rag("exact_match", RAG_KINDS)),
    ),
    Target("fewer searches than RAG", 0.30, False, _fewer_searches),
    Target("RL searches on search-free questions", 0.15, True, _of("rl", "search_ratio", label="free")),
    Target("RL searches on search-required ones", 0.95, False, _of("rl", "search_ratio", label="required")),
    Target("RL: the right tool first", 0.90, False, _of("rl", "first_tool_right_required", label="required")),
    Target("RL: the right step first, search or not", 0.90, False, _of("rl", "first_tool_right")),
    Target("without penalty: times the searches on search-free", 2.0, False, _times("no_penalty"), ".1f"),
    Target(
        "with crop over without, on crowded scenes",
        0.10,
        False,
        _less(_CROWDED, _of("no_crop", "exact_match", tag="crowded")),
    ),
)
