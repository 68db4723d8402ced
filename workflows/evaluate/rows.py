"""One row per episode of an evaluation: what metrics are computed from, in memory and from Parquet alike."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.trajectory import Ending, Failure, Outcome, Question, SegmentKind, Tool, Trajectory
from actors.reward.accuracy import exact_match, token_f1
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
    images: int
    question: str
    answers: tuple[str, ...]
    answer: str
    exact_match: float
    f1: float
    text_searches: int  # that reached a provider
    image_searches: int  # the same, crops included
    crops: int  # image searches of a part of the picture
    searches_ok: int  # that found something
    first_tool: str  # text_search | image_search | crop | ""
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
    def searches(self) -> int:
        return self.text_searches + self.image_searches


SCHEMA = pa.schema(
    [
        (field.name, {"str": pa.large_string(), "int": pa.int32(), "float": pa.float64(), "bool": pa.bool_()}[name])
        if (name := str(field.type)) in ("str", "int", "float", "bool")
        else (field.name, pa.list_(pa.string()))
        for field in fields(Row)
    ]
)


def row_of(arm: str, question: Question, trajectory: Trajectory, attempts: int = 1) -> Row:
    """Hold an episode against its question. An episode without an answer is wrong."""
    done = [call for call in trajectory.tool_calls if call.executed]
    looked = [call for call in done if call.request.tool is Tool.IMAGE_SEARCH]
    crops = [call for call in looked if call.request.query or call.request.box]
    counts = trajectory.failure not in (Failure.INFRA, Failure.DATA)
    return Row(
        arm=arm,
        question_id=question.id,
        sample_index=trajectory.sample_index,
        kind=question.kind or "unknown",
        label=label_of(question).value,
        images=len(question.images),
        question=question.text,
        answers=question.answers,
        answer=trajectory.answer,
        exact_match=exact_match(trajectory.answer, question.answers) if counts else 0.0,
        f1=token_f1(trajectory.answer, question.answers) if counts else 0.0,
        text_searches=sum(call.request.tool is Tool.TEXT_SEARCH for call in done),
        image_searches=len(looked),
        crops=len(crops),
        searches_ok=sum(call.result.outcome is Outcome.OK for call in done),
        first_tool=("crop" if done[0] in crops else done[0].request.tool.value) if done else "",
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


def _well_formed(trajectory: Trajectory) -> bool:
    """By the reward's verdict, which knows every turn, where there is one."""
    if trajectory.ending not in (Ending.ANSWERED, Ending.GAVE_UP):
        return False
    return trajectory.format_ok and (trajectory.reward is None or trajectory.reward.format > 0)


def write_rows(folder: Folder, name: str, rows: list[Row]) -> None:
    """One Parquet file, whole or not there."""
    sink = io.BytesIO()
    plain = [{**asdict(row), "answers": list(row.answers)} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain, schema=SCHEMA), sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())


def read_rows(folder: Folder, name: str) -> list[Row]:
    """What `write_rows` wrote. Raises FileNotFoundError, pyarrow's errors, and TypeError for other columns."""
    table = pq.read_table(io.BytesIO(folder.read_bytes(name)))
    return [Row(**{**row, "answers": tuple(row["answers"])}) for row in table.to_pylist()]
