"""One row per episode of an evaluation: what metrics are computed from, in memory and from Parquet alike."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.trajectory import (
    Ending,
    Evidence,
    Failure,
    Outcome,
    Question,
    SegmentKind,
    Tool,
    ToolCall,
    Trajectory,
)
from actors.reward.accuracy import contains_match, exact_match, token_f1
from cluster.storage import Folder
from workflows.grpo.records import trajectory_to
from workflows.grpo.step_metrics import label_of


@dataclass(frozen=True)
class Row:
    """What one episode showed. Plain values only."""

    arm: str
    question_id: str
    sample_index: int
    kind: str
    label: str  # free | required | unknown: whether the question needs a search
    tags: tuple[str, ...]  # free words, as the question's maker gave them
    first_tools: tuple[str, ...]  # the right first steps; () where they are not known
    image_refs: tuple[str, ...]  # sha256 of the question's pictures
    question: str
    answers: tuple[str, ...]
    answer: str
    exact_match: float
    f1: float
    text_searches: int  # that reached a provider
    image_searches: int  # the same, crops included
    crops: int  # image searches of a part of the picture
    searches_ok: int  # that found something
    first_tool: str  # none | text_search | image_search | crop
    first_hit: bool  # a gold answer stands in what the first search returned
    evidence_hit: bool  # a gold answer stands in what any search returned
    cited: bool  # the answer names evidence by number
    cited_support: bool  # a gold answer stands in evidence that it names
    cost_usd: float  # of all searches
    judged: float | None  # the judge's verdict: 1 right, 0 wrong; None: not asked, or unknown
    judge_says: str  # why; "" when no judge was asked
    format_ok: bool
    ending: str
    failure: str  # infra and data: the episode says nothing about the model
    problem: str
    turns: int
    sampled_tokens: int
    total_tokens: int  # of the whole episode, images expanded
    seconds: float
    attempts: int  # times it was played until it was not spoilt
    reward: float
    version: int  # of the weights, the newest if several
    text: str  # all turns, for people
    record: str  # the whole trajectory as JSON

    @property
    def counts(self) -> bool:
        """Whether it is the model's doing: spoilt episodes are counted apart."""
        return self.failure not in (Failure.INFRA, Failure.DATA)

    @property
    def unjudged(self) -> bool:
        """Whether a judge was asked and its verdict is not known."""
        return self.judged is None and self.judge_says != ""

    @property
    def searches(self) -> int:
        return self.text_searches + self.image_searches


_COLUMNS = {
    "str": pa.large_string(),
    "int": pa.int32(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}
SCHEMA = pa.schema([(field.name, _COLUMNS[str(field.type)]) for field in fields(Row)])
_LISTS = [field.name for field in fields(Row) if str(field.type) == "tuple[str, ...]"]


def row_of(arm: str, question: Question, trajectory: Trajectory, attempts: int = 1) -> Row:
    """Hold an episode against its question. An episode without an answer is wrong."""
    done = [call for call in trajectory.tool_calls if call.executed]
    looked = [call for call in done if call.request.tool is Tool.IMAGE_SEARCH]
    counts = trajectory.failure not in (Failure.INFRA, Failure.DATA)
    cited = [item for item in trajectory.evidence if item.number in trajectory.citations]
    return Row(
        arm=arm,
        question_id=question.id,
        sample_index=trajectory.sample_index,
        kind=question.kind or "unknown",
        label=label_of(question).value,
        tags=question.tags,
        first_tools=question.first_tools,
        image_refs=tuple(ref.sha256 for ref in question.images),
        question=question.text,
        answers=question.answers,
        answer=trajectory.answer,
        exact_match=exact_match(trajectory.answer, question.answers) if counts else 0.0,
        f1=token_f1(trajectory.answer, question.answers) if counts else 0.0,
        text_searches=sum(call.request.tool is Tool.TEXT_SEARCH for call in done),
        image_searches=len(looked),
        crops=sum(_name_of(call) == "crop" for call in looked),
        searches_ok=sum(call.result.outcome is Outcome.OK for call in done),
        first_tool=_name_of(done[0]) if done else "none",
        first_hit=bool(done) and supports(done[0].result.evidence, question.answers),
        evidence_hit=supports(trajectory.evidence, question.answers),
        cited=bool(trajectory.citations),
        cited_support=supports(cited, question.answers),
        cost_usd=sum(call.result.cost_usd for call in done),
        judged=None,
        judge_says="",
        format_ok=_well_formed(trajectory),
        ending=trajectory.ending.value,
        failure=trajectory.failure.value,
        problem=trajectory.problem,
        turns=sum(segment.kind is SegmentKind.ACTION for segment in trajectory.segments),
        sampled_tokens=trajectory.sampled_tokens,
        total_tokens=trajectory.expanded_length,
        seconds=trajectory.seconds,
        attempts=attempts,
        reward=trajectory.reward.total if trajectory.reward else 0.0,
        version=max(trajectory.versions, default=-1),
        text="\n".join(f"[{segment.kind.value}] {segment.text}" for segment in trajectory.segments),
        record=json.dumps(trajectory_to(trajectory)),
    )


def supports(evidence: Sequence[Evidence], golds: Sequence[str]) -> bool:
    """Whether a gold answer stands in retrieved text, word for word, normalised as exact match normalises."""
    return any(contains_match(text, golds) > 0 for item in evidence for text in (item.title, item.text))


def _name_of(call: ToolCall) -> str:
    """One of `FIRST_TOOLS`."""
    request = call.request
    if request.tool is Tool.IMAGE_SEARCH and (request.query or request.box):
        return "crop"
    return request.tool.value


def _well_formed(trajectory: Trajectory) -> bool:
    """By the reward's verdict, which knows every turn, where there is one."""
    if trajectory.ending not in (Ending.ANSWERED, Ending.GAVE_UP):
        return False
    return trajectory.format_ok and (trajectory.reward is None or trajectory.reward.format > 0)


def write_rows(folder: Folder, name: str, rows: list[Row]) -> None:
    """One Parquet file, whole or not there."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())


def read_rows(folder: Folder, name: str) -> list[Row]:
    """What `write_rows` wrote. Raises FileNotFoundError, pyarrow's errors, and TypeError for other columns."""
    table = pq.read_table(io.BytesIO(folder.read_bytes(name)))
    return [Row(**{**row, **{name: tuple(row[name]) for name in _LISTS}}) for row in table.to_pylist()]
