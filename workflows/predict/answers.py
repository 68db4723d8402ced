"""One row per question as it was answered: what `mmsearch predict` writes.

id             as in the questions; row number and digest of the content where they have none
question       as it was asked
answer         null unless `ending` is answered
ending         answered | gave_up | out_of_turns | out_of_tokens | failed
failure        none | policy | data: whose fault it is; what the infrastructure spoilt is played again, not written
problem        the first thing that went wrong, in words; "" for nothing
citations      numbers of the evidence that the answer names
evidence       all that was found: [{number, title, text, url, provider, turn, image_number, crop_box}]
searches       that reached a provider; `searches_failed` of them found the world broken
cost_usd       of all searches
sampled_tokens, seconds, attempts
weights_version    the model's: the same weights have the same one, anywhere
right_answers  as they stood in the questions; empty where they had none
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from actors.agent.trajectory import Ending, Failure, Outcome, Trajectory
from workflows.steps import evidence_document

ROW = "row"  # the question's number in the input: in the parts alone
_EVIDENCE = pa.struct(
    [
        ("number", pa.int32()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("url", pa.string()),
        ("provider", pa.string()),
        ("turn", pa.int32()),
        ("image_number", pa.int32()),  # the picture that was searched; null for a text search
        ("crop_box", pa.list_(pa.int32())),  # x0, y0, x1, y1 in its pixels; null for a whole one
    ]
)
ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("ending", pa.string()),
        ("failure", pa.string()),
        ("problem", pa.string()),
        ("citations", pa.list_(pa.int32())),
        ("evidence", pa.list_(_EVIDENCE)),
        ("searches", pa.int32()),
        ("searches_failed", pa.int32()),
        ("cost_usd", pa.float64()),
        ("sampled_tokens", pa.int32()),
        ("seconds", pa.float64()),
        ("attempts", pa.int32()),
        ("weights_version", pa.string()),
        ("right_answers", pa.list_(pa.string())),
    ]
)
PARTS = pa.schema([(ROW, pa.int64()), *ANSWERS])


def answer_row(asked: Mapping[str, Any], trajectory: Trajectory, attempts: int, weights_version: str) -> dict[str, Any]:
    """A row of `PARTS`; `asked`: a row of `ASKED`."""
    done = [call for call in trajectory.tool_calls if call.executed]
    return {
        ROW: asked["row"],
        "id": asked["id"],
        "question": asked["question"],
        "answer": trajectory.answer if trajectory.ending is Ending.ANSWERED else None,
        "ending": trajectory.ending.value,
        "failure": trajectory.failure.value,
        "problem": trajectory.problem,
        "citations": list(trajectory.citations),
        "evidence": [evidence_document(item) for item in trajectory.evidence],
        "searches": len(done),
        "searches_failed": sum(call.result.outcome is Outcome.INFRA_ERROR for call in done),
        "cost_usd": sum(call.result.cost_usd for call in done),
        "sampled_tokens": trajectory.sampled_tokens,
        "seconds": trajectory.seconds,
        "attempts": attempts,
        "weights_version": weights_version,
        "right_answers": asked["right_answers"],
    }


def unasked(asked: Mapping[str, Any], problem: str, failure: Failure) -> Trajectory:
    """The episode of a question that was not played."""
    return Trajectory(asked["id"], 0, (), (), Ending.FAILED, failure, problem=problem)
