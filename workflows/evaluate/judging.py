"""What a judge says of an evaluation's rows. Its verdicts are kept in <run>/evaluate/judge; a second evaluation asks
nothing.

Always true: the judged columns of rows and files are those of the judge that is configured now, and empty without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actors.agent.seams import ImageStore
from actors.agent.trajectory import Question
from actors.reward.judge import Case, Judge
from actors.reward.judge_rules import Verdict
from actors.reward.settings import JudgeSettings
from cluster.storage import Folder
from workflows.evaluate.rows import Row, write_rows

if TYPE_CHECKING:
    from workflows.evaluate.judge_endpoint import JudgeEndpoint

FOLDER = "judge"
NO_ANSWER = "no answer"  # wrong without being asked


@dataclass(frozen=True)
class Judged:
    """Rows by arm with the judge's columns filled in; what to say of the judge in results.json, None without one."""

    arms: dict[str, list[Row]]
    told: dict[str, Any] | None


def judge_arms(
    settings: JudgeSettings,
    arms: Mapping[str, Sequence[Row]],
    questions: Mapping[str, Question],
    images: ImageStore,
    folder: Folder,
    console: Console,
    quota_folder: str = "",
) -> Judged:
    """Judge what was answered, say what leaves the machine before it does, and write the files that changed.

    `folder` is the evaluation's, `quota_folder` the address of the journals of what was spent. Raises `UserError` for
    a key that is not there; what an endpoint does wrong, and what its quota refuses, makes verdicts unknown.
    """
    judged = _judged(settings, arms, questions, images, folder, console, quota_folder)
    for name, rows in judged.arms.items():
        if rows != list(arms[name]):
            write_rows(folder, f"{name}.parquet", rows)
    return judged


def _judged(
    settings: JudgeSettings,
    arms: Mapping[str, Sequence[Row]],
    questions: Mapping[str, Question],
    images: ImageStore,
    folder: Folder,
    console: Console,
    quota_folder: str,
) -> Judged:
    bare = {name: [replace(row, judged=None, judge_says="") for row in rows] for name, rows in arms.items()}
    if settings.model is None:
        return Judged(bare, None)
    from workflows.evaluate.judge_endpoint import JudgeEndpoint  # and with it Ray and an HTTP client

    model = JudgeEndpoint(settings, quota_folder)
    judge = Judge(settings, model, images, folder / FOLDER)
    rows = [row for rows in bare.values() for row in rows if _to_ask(row)]
    pictures = {id: question.images for id, question in questions.items()}
    cases = [Case(row.question, row.answers, row.answer, pictures.get(row.question_id, ())) for row in rows]
    if n := judge.missing(cases):
        tell = f"judge: the {judge.sends} of {n} cases are sent to {model.address} (model {settings.model})"
        console.print(tell, highlight=False, markup=False)
    verdicts = dict(zip(map(_place, rows), asyncio.run(_verdicts(judge, model, cases)), strict=True))
    unknown = [verdict.says for verdict in verdicts.values() if verdict.right is None]
    if unknown:
        tell = f"judge: {len(unknown)} of {len(cases)} verdicts are unknown and in no share, the first: {unknown[0]}"
        console.print(tell, highlight=False, markup=False)

    def filled(row: Row) -> Row:
        if verdict := verdicts.get(_place(row)):
            return replace(row, judged=None if verdict.right is None else float(verdict.right), judge_says=verdict.says)
        return replace(row, judged=0.0, judge_says=NO_ANSWER) if row.counts else row

    told = {
        "model": settings.model,
        "prompt": settings.prompt.value,
        "endpoint": model.address,
        "cases": len(cases),
        "asked": judge.asked,
        "requests": model.tally.requests,
        "tokens": model.tally.tokens,
        "unknown": len(unknown),
    }
    return Judged({name: [filled(row) for row in rows] for name, rows in bare.items()}, told)


async def _verdicts(judge: Judge, model: JudgeEndpoint, cases: Sequence[Case]) -> list[Verdict]:
    try:
        return await judge.verdicts(cases)
    finally:
        await model.close()


def _to_ask(row: Row) -> bool:
    return row.counts and row.ending == "answered" and bool(row.answer.strip() and row.answers)


def _place(row: Row) -> tuple[str, str, int]:
    return row.arm, row.question_id, row.sample_index
