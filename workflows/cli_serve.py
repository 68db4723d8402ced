"""`mmsearch serve`: the trained agent as a service, and what is done to one that runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workflows.commands import Config, Overrides, stage

START = "start"
SERVED = ("world", "dataset")  # what searches and examples of a run come from


class StartsByDefault(TyperGroup):
    """`mmsearch serve --checkpoint X` is `mmsearch serve start --checkpoint X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name where it was left out."""
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = [START, *args]
        return super().parse_args(ctx, args)


serve = typer.Typer(
    cls=StartsByDefault,
    help="Serve the trained agent: OpenAI's chat API with searches and evidence, and a page to try it on.",
    epilog="Examples: `mmsearch serve --checkpoint runs/demo`, `mmsearch serve update --checkpoint rl`,"
    " `mmsearch serve key alice`",
)
Dashboard = Annotated[
    str | None, typer.Option(metavar="URL", help="Ray's dashboard (default: that of this run's service).")
]


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.add_typer(serve, name="serve")


def of_run(
    config: str | None, overrides: Sequence[str] | None, checkpoint: str | None, parts: Sequence[str]
) -> list[str]:
    """The overrides, and with them the run whose folder `checkpoint` is, where the command needs `parts` of a run, the
    settings name no folder, and their own has none of them: searches, examples and the model's name are then its own.

    It is said in a line which run's they are when weights come from another. Raises `UserError`.
    """
    from cluster.storage import Folder
    from workflows.evaluate.arms import WEIGHTS
    from workflows.settings import load

    words = list(overrides or ())
    settings = load(config, words)
    named = checkpoint or settings.serve.checkpoint
    if named is None or named in WEIGHTS:
        return words
    own, other = settings.run.folder, Folder(named)
    trained = any(other.exists(WEIGHTS[stage]) for stage in ("sft", "rl"))
    if other == own or other.exists("config.json") or not trained:
        return words
    if any(own.exists(part) for part in parts):
        print(f"weights: {other}; everything else of the run at {own}", file=sys.stderr)
        return words
    if settings.run.storage is not None or not any(other.exists(part) for part in parts):
        return words
    print(f"the run at {other}: its weights, searches and examples", file=sys.stderr)
    words.append(f"run.storage={json.dumps(other.address)}")  # quoted: a folder's name may be YAML
    if not any(word.startswith("run.name=") for word in words):
        words.append(f"run.name={json.dumps(other.name)}")
    return words


@serve.command(
    START, epilog="Examples: `mmsearch serve run.name=mine`, `mmsearch serve --checkpoint sft serve.port=8001`"
)
def start(
    overrides: Overrides = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="base, sft or rl of this run; a model folder; another run's folder."),
    ] = None,
    config: Config = None,
) -> None:
    """Start the service, and keep it until Ctrl-C (what `mmsearch serve` does without a command)."""
    stage("workflows.serve.run:run", config, of_run(config, overrides, checkpoint, SERVED), checkpoint=checkpoint)


@serve.command(epilog="Example: `mmsearch serve update --checkpoint rl run.name=mine`")
def update(
    checkpoint: Annotated[
        str, typer.Option(metavar="MODEL", help="base, sft or rl of this run; a model folder; another run's folder.")
    ],
    overrides: Overrides = None,
    dashboard: Dashboard = None,
    config: Config = None,
) -> None:
    """Swap the weights of the running service in flight, on every replica; no request fails."""
    from workflows.serve.run import RECORD

    words = overrides if dashboard else of_run(config, overrides, checkpoint, [RECORD])
    stage("workflows.serve.run:update", config, words, checkpoint=checkpoint, dashboard=dashboard)


@serve.command(epilog="Example: `mmsearch serve key alice`")
def key(name: Annotated[str, typer.Argument(help="Whose it is: logs and metrics call it so.")]) -> None:
    """Make an API key, and print what belongs into the configuration: its hash, not the key."""
    from cluster.errors import UserError
    from workflows.serve.keys import new_key
    from workflows.serve.settings import KeySettings

    secret, sha256 = new_key()
    try:
        KeySettings(name, sha256).check()
    except ValueError as error:
        raise UserError(f"{error}.") from error
    print(f"key, shown this once: {secret}\n\nserve:\n  keys:\n    - name: {name}\n      sha256: {sha256}")
