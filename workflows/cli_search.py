"""The commands about the outside world: `mmsearch search`, `quota`, `cassette`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from workflows.commands import Config, Overrides, stage

search = typer.Typer(
    no_args_is_help=True,
    help="Try the search tools of a configuration, with what they cost and how long they take.",
    epilog='Examples: `mmsearch search text "who founded gurvervox?"`, `mmsearch search image scene.png --crop "the red'
    ' star"`, `mmsearch search text --config web "glass museums"`',
)
cassette = typer.Typer(
    no_args_is_help=True,
    help="Look at recorded calls, put several recordings together, throw some away.",
    epilog="Examples: `mmsearch cassette info runs/tape`, `mmsearch cassette merge s3://team/tapes/a runs/tape --into"
    " runs/both`, `mmsearch cassette prune runs/tape --older-than 30d`",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.add_typer(search, name="search")
    app.add_typer(cassette, name="cassette")
    app.command(epilog="Examples: `mmsearch quota`, `mmsearch quota --config web --json`")(quota)


@search.command(name="text", epilog='Example: `mmsearch search text "who founded gurvervox?" search.top_k=3`')
def search_text(
    query: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    overrides: Overrides = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Search for text as the agent does: cache, quota, provider, pages, evidence."""
    stage("workflows.try_search:run", config, overrides, query=query, as_json=as_json)


@search.command(name="image", epilog='Example: `mmsearch search image scene.png --crop "the red star"`')
def search_image(
    picture: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP.", show_default=False)],
    overrides: Overrides = None,
    crop: Annotated[str, typer.Option(metavar="WORDS", help="What of the picture to cut out and search with.")] = "",
    box: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Or where, in thousandths of width and height.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Search with a picture, or with a part of it."""
    if not picture.is_file():
        raise UserError(f"There is no picture at {picture}.")
    if crop and box:
        raise UserError("Give --crop or --box, not both.")
    corners = _corners(box) if box else None
    stage("workflows.try_search:run", config, overrides, query=crop, picture=picture, box=corners, as_json=as_json)


def quota(overrides: Overrides = None, as_json: AsJson = False, config: Config = None) -> None:
    """What was spent today and this month at each endpoint with a quota, and what is left."""
    stage("workflows.quota:run", config, overrides, as_json=as_json)


Tape = Annotated[str, typer.Argument(metavar="FOLDER", help="A local folder or s3://...", show_default=False)]


@cassette.command(name="info", epilog="Example: `mmsearch cassette info runs/tape`")
def cassette_info(folder: Tape) -> None:
    """What was recorded: calls by tool and provider, when, for how much."""
    from workflows.cassette import info

    print(info(folder))


@cassette.command(name="merge", epilog="Example: `mmsearch cassette merge runs/a s3://team/tapes/b --into runs/both`")
def cassette_merge(
    sources: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Cassettes to read.", show_default=False)],
    into: Annotated[str, typer.Option(metavar="FOLDER", help="Where all of it goes.")],
) -> None:
    """Put recordings together; of a call that was recorded twice the earliest holds."""
    from workflows.cassette import merge

    print(merge(sources, into))


@cassette.command(
    name="prune", epilog="Example: `mmsearch cassette prune runs/tape --tool image_search --older-than 30d`"
)
def cassette_prune(
    folder: Tape,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Recorded before 30d, 12h, or 2026-11-01.")] = "",
    tool: Annotated[str, typer.Option(metavar="TOOL", help="Of this tool only, as text_search.")] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Keep the newest N calls.")] = None,
) -> None:
    """Throw recordings away."""
    from workflows.cassette import prune

    print(prune(folder, older_than, tool, limit))


def _corners(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box is {text!r} and must be four whole numbers, as in 100,200,400,600.") from None
    return x0, y0, x1, y1
