"""`mmsearch predict`: the agent over a whole dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import UserError
from workflows.commands import SETTING, Config, Overrides, stage


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.command(
        epilog="Examples: `mmsearch predict questions.parquet --out answers.parquet`,"
        " `mmsearch predict runs/embedded/dataset/questions/test --out answers.parquet --checkpoint sft`,"
        " `mmsearch predict s3://bucket/questions --out s3://bucket/answers --question-column text predict.actors=4`"
    )(predict)


def predict(
    questions: Annotated[
        str, typer.Argument(metavar="QUESTIONS", help="A Parquet file, or a folder of them; local or s3://.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Where the answers go: a .parquet file, or a folder; local or s3://."),
    ] = None,
    question_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column that is asked (default: question, or prompt).")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="base, sft or rl of this run; a model folder; another run's folder."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Throw away what is answered already, and begin anew.")
    ] = False,
    config: Config = None,
) -> None:
    """Answer every question of a Parquet dataset; stop with Ctrl-C, start again to continue with the rows left."""
    if SETTING.match(questions):
        raise UserError(
            "Say where the questions are, as in `mmsearch predict questions.parquet --out answers.parquet`."
        )
    if not out:
        raise UserError(f"Say where the answers go, as in `mmsearch predict {questions} --out answers.parquet`.")
    options = {"questions": questions, "out": out, "question_column": question_column, "checkpoint": checkpoint}
    stage("workflows.predict.run:run", config, overrides, **options, again=again)
