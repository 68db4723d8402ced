"""`mmsearch <command> [--config FILE] [key=value ...]`: what a person types.

Commands are thin: they load the settings and hand them to their stage, which is imported only then, so that
`--help` and a mistake in the configuration answer at once. A UserError becomes its one sentence and exit code 2, a
run that broke exit code 1, Ctrl-C exit code 130; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import RunBroken, UserError
from workflows import cli_bench, cli_index, cli_plan, cli_predict, cli_search, cli_serve
from workflows.commands import SETTING, Config, Overrides, restarted, stage

app = typer.Typer(
    name="mmsearch",
    help="Train a multimodal model to search on demand: SFT, then asynchronous GRPO.",
    epilog="Run `mmsearch demo` to see it all, `mmsearch doctor` when something is wrong with the machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
dataset = typer.Typer(
    no_args_is_help=True, help="Make training data, or look at it.", epilog="Example: `mmsearch dataset inspect`"
)
app.add_typer(dataset, name="dataset")
app.add_typer(cli_bench.bench, name="bench")
app.add_typer(cli_index.index, name="index")
cli_search.add_to(app)
cli_plan.add_to(app)
cli_predict.add_to(app)
cli_serve.add_to(app)


@app.command(epilog="Example: `mmsearch doctor --json`")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Print what this machine has, what is missing, and the command that mends it."""
    from workflows.doctor import run

    raise typer.Exit(run(as_json=as_json))


@app.command(epilog="Example: `mmsearch pretrain run.name=mine`")
def pretrain(overrides: Overrides = None, config: Config = None) -> None:
    """Make the embedded world's tiny base model."""
    stage("workflows.embedded.pretrain:run", config, overrides)


@dataset.command(epilog="Example: `mmsearch dataset build run.name=mine`")
def build(overrides: Overrides = None, config: Config = None) -> None:
    """Write questions and SFT conversations as Parquet shards."""
    stage("workflows.dataset.build:run", config, overrides)


@dataset.command(epilog="Example: `mmsearch dataset inspect run.name=mine`")
def inspect(overrides: Overrides = None, config: Config = None) -> None:
    """Show counts by kind, label and category, and a few samples."""
    stage("workflows.dataset.inspect:run", config, overrides)


@app.command(epilog="Example: `mmsearch sft run.name=mine`")
def sft(overrides: Overrides = None, config: Config = None) -> None:
    """Fine-tune the base model on the teacher's conversations."""
    stage("workflows.sft:run", config, overrides)


@app.command(
    epilog="Examples: `mmsearch grpo --config embedded run.name=mine`, `mmsearch grpo --restarts 5 run.name=mine`"
)
def grpo(
    overrides: Overrides = None,
    restarts: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="After a crash start again from the newest checkpoint; N times in vain end it."
        ),
    ] = 0,
    config: Config = None,
) -> None:
    """Train with asynchronous GRPO, from the SFT model on."""
    if restarts:
        restarted("workflows.grpo.run:progress", config, overrides, restarts)
    stage("workflows.grpo.run:run", config, overrides)


@app.command(epilog="Example: `mmsearch evaluate run.name=mine`")
def evaluate(overrides: Overrides = None, config: Config = None) -> None:
    """Compare direct answers, RAG, SFT and RL on held-out questions."""
    stage("workflows.evaluate.run:run", config, overrides)


@app.command(
    epilog='Examples: `mmsearch ask --image picture.png "name the founder of the red circle."`,'
    " `mmsearch ask --url http://127.0.0.1:8000 --example 0`"
)
def ask(
    question: Annotated[str | None, typer.Argument(help="What to ask.", show_default=False)] = None,
    overrides: Overrides = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture that the question is about; repeatable.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="base, sft or rl of this run; a model folder; another run's folder."),
    ] = None,
    example: Annotated[
        int | None, typer.Option(metavar="N", help="Ask test question N of the run, and keep its picture.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask a running service (`mmsearch serve`), not a model here.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The environment variable with the key for --url: MMSEARCH_API_KEY."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print steps, answer and evidence as JSON.")] = False,
    config: Config = None,
) -> None:
    """Ask the trained agent; it prints its steps as they happen, and the answer with its evidence."""
    images, words = image or [], overrides or []
    for path in images:
        if not path.is_file():
            raise UserError(f"There is no picture at {path}.")
    question, words = asked([question, *words] if question else words)
    if url is not None and checkpoint is not None:
        raise UserError("A service answers with the weights that it runs: leave out --checkpoint, or --url.")
    if url is None and key_env is not None:
        raise UserError("--key-env names the key for a service: give its address with --url.")
    options = {"question": question, "images": images, "checkpoint": checkpoint, "example": example}
    if url is not None:
        from workflows.remote_ask import service_at

        options["service"] = service_at(url, key_env)
    stage("workflows.ask:run", config, words, **options, as_json=as_json)


def asked(words: list[str]) -> tuple[str | None, list[str]]:
    """The question among the words, wherever it stands, and the settings. Raise `UserError` for several."""
    overrides = [word for word in words if SETTING.match(word)]
    others = [word for word in words if not SETTING.match(word)]
    if len(others) > 1:
        raise UserError(f'Put the question in quotes, as in `mmsearch ask "{" ".join(others)}"`.')
    return (others[0] if others else None), overrides


@app.command(epilog="Examples: `mmsearch demo run.name=other run.seed=1`, `mmsearch demo --seeds 3 --ablations`")
def demo(
    overrides: Overrides = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, max=20, help="Runs, each with another seed and another world.")
    ] = 1,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also without crop search, without search penalty, on unbalanced data.")
    ] = False,
    config: Config = None,
) -> None:
    """Run every stage on this machine, for real; stop with Ctrl-C, start again to continue.

    Over several seeds it ends with means and 95 % intervals, and says which targets were reached.
    """
    from workflows.settings import load

    def again(words: Sequence[str]) -> Any:
        return load(config, [*(overrides or []), *words])

    stage("workflows.demo:run", config, overrides, seeds=seeds, ablations=ablations, again=again)


@app.command(epilog="Examples: `mmsearch report embedded`, `mmsearch report runs/a runs/b --out compared.html`")
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="A run's folder (local or s3://), or its run.name under runs/."),
    ],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where it goes (default: report.html in the first run's folder).")
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Episodes shown of each arm (default: 40).", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write one self-contained page about a run, or about several side by side."""
    from workflows.report.run import run

    run(runs, out, episodes, show)


def main() -> None:
    """The `mmsearch` command. A person's own modules are found in the working directory, as Ray's workers find them."""
    sys.path.append(str(Path.cwd()))  # last: a file there must not pass for a library
    try:
        app()
    except UserError as error:
        # Raised inside a Ray actor it arrives wrapped, with the original as its cause.
        told = getattr(error, "cause", error)
        print(f"mmsearch: {getattr(told, 'message', told)}", file=sys.stderr)
        sys.exit(2)
    except RunBroken as error:
        print(f"mmsearch: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
