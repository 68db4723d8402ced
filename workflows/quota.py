"""`mmsearch quota`: what the journals of a configuration's endpoints say was spent, and what is left of the budgets."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.search.build import endpoint_name
from actors.search.quota.core import QuotaCore
from actors.search.quota.journal import Journal
from actors.search.settings import ProviderSettings, SearchSettings
from cluster.storage import Folder


def run(settings: Any, *, as_json: bool = False) -> None:
    """The command. Raises UserError."""
    rows = standings(settings.search, time.time())
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        Console().print("no endpoint of this configuration has a quota (search.text[0].quota=...)", highlight=False)
    else:
        show(rows, Console())


def standings(search: SearchSettings, now: float) -> list[dict[str, Any]]:
    """One row for each endpoint with a quota and each window: spent (claims of running brokers included) and left."""
    rows: list[dict[str, Any]] = []
    for provider in search.endpoints():
        if provider.quota is not None:
            rows += _of_one(provider, search.quota_folder, now)
    return rows


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
