"""`mmsearch serve`: the trained agent as a service, and what is done to one that runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workflows.commands import Config, Overrides, stage

START = "start"


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
    stage("workflows.serve.run:run", config, overrides, checkpoint=checkpoint)


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
    stage("workflows.serve.run:update", config, overrides, checkpoint=checkpoint, dashboard=dashboard)


@serve.command(epilog="Example: `mmsearch serve key alice`")
def key(name: Annotated[str, typer.Argument(help="Whose it is: logs and metrics call it so.")]) -> None:
    """Make an API key, and print what belongs into the configuration: its hash, not the key."""
    from workflows.serve.keys import new_key

    secret, sha256 = new_key()
    print(f"key, shown this once: {secret}\n\nserve:\n  keys:\n    - name: {name}\n      sha256: {sha256}")
