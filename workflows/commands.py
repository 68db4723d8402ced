"""What all commands of the shell share: their options, and how a stage is loaded and run."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.storage_failures import storage_told
from workflows.supervisor import SUPERVISED, end_with_parent, supervise

SETTING = re.compile(r"[A-Za-z_][\w.]*=")  # how a word that is a setting begins; a question has a blank before any `=`

Config = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="FILE", help="A YAML file, or a shipped one's name (default: embedded)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Settings that win over the file, as in run.seed=1.", show_default=False),
]


def stage(where: str, config: str | None, overrides: list[str] | None, **options: Any) -> None:
    """Loads the settings, then imports `module:function` and runs it with them."""
    from workflows.settings import load

    settings = load(config, overrides or [])
    module, _, name = where.partition(":")
    try:
        run: Callable[..., None] = getattr(importlib.import_module(module), name)
        with storage_told("the command ended, because storage refused"):
            run(settings, **options)
    except KeyboardInterrupt:
        print("mmsearch: stopped; the same command continues where it was.", file=sys.stderr)
        raise typer.Exit(130) from None


def restarted(progress: str, config: str | None, overrides: list[str] | None, limit: int) -> None:
    """Returns in the process that does the work; the one that was called starts it, again after a crash, and exits.

    `progress`: `module:function` of the settings, whose value changes as the command gets further.
    """
    if SUPERVISED in os.environ:
        end_with_parent()
        return
    from workflows.settings import load

    settings = load(config, overrides or [])  # what is wrong with them is told once
    module, _, name = progress.partition(":")
    reached: Callable[[Any], object] = getattr(importlib.import_module(module), name)
    command = [sys.executable, "-m", "workflows.cli", *sys.argv[1:]]
    code = supervise(
        command, limit, lambda: reached(settings), lambda says: print(f"mmsearch: {says}", file=sys.stderr, flush=True)
    )
    raise typer.Exit(code)
