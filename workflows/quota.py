"""`mmsearch quota`: what the journals of a configuration's endpoints say was spent, and what is left of the budgets."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.search.build import endpoint_name
from actors.search.quota.core import QuotaCore
from actors.search.quota.journal import Journal
from actors.search.settings import ProviderSettings
from cluster.storage import Folder
from workflows.evaluate.judge_endpoint import judge_provider


def run(settings: Any, *, as_json: bool = False) -> None:
    """The command. Raises UserError."""
    rows = standings(endpoints(settings), settings.search.quota_folder, time.time())
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        Console().print(
            "no endpoint of this configuration has a quota: see `quota` of the providers in conf/web.yaml",
            highlight=False,
        )
    else:
        show(rows, Console())


def endpoints(settings: Any) -> list[ProviderSettings]:
    """Everything outside that `settings`, a `workflows.settings.Settings`, names: the search's, then the judge."""
    judge = settings.evaluate.judge
    return [*settings.search.endpoints(), *([judge_provider(judge)] if judge.model else [])]


def standings(providers: Sequence[ProviderSettings], folder: str, now: float) -> list[dict[str, Any]]:
    """One row for each endpoint with a quota and each window: spent (claims of running brokers included) and left.

    `folder`: address of the journals, "" for none. Endpoints that share a quota are one.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for provider in providers:
        if provider.quota is not None:
            rows[endpoint_name(provider)] = _of_one(provider, folder, now)
    return [row for of_one in rows.values() for row in of_one]


def _of_one(provider: ProviderSettings, folder: str, now: float) -> list[dict[str, Any]]:
    assert provider.quota is not None
    name = endpoint_name(provider)
    core = QuotaCore(provider.quota, now, provider.usd_per_call)
    written = Journal(Folder(folder), name).read() if folder else None
    if written is not None:
        core.restore(now, written)
    left = core.left()
    return [
        {
            "endpoint": name,
            "window": window.name,
            "requests": window.spent.requests,
            "tokens": window.spent.tokens,
            "usd": window.spent.micro_usd / 1e6,
            "left": left[window.name],
        }
        for window in core.budgets.windows
    ]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """As a table; while a broker runs, its claims of the next moment count as spent."""
    table = Table("endpoint", "this", "requests", "tokens", "USD", "left")
    for row in rows:
        left = ", ".join(f"{value:,.10g} {'USD' if part == 'usd' else part}" for part, value in row["left"].items())
        table.add_row(
            row["endpoint"],
            row["window"],
            str(row["requests"]),
            str(row["tokens"]),
            f"{row['usd']:.4f}",
            left or "no bound",
        )
    console.print(table)
