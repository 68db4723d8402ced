"""`mmsearch search text|image`: one call through the gateway, in this process, and what came of it."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from actors.agent.trajectory import Outcome, Tool, ToolRequest, ToolResult
from actors.model.images import BlobImages
from actors.search.build import build_gateway
from actors.search.ledger import Totals
from cluster.blobs import BlobStore
from workflows.ask import put_picture
from workflows.steps import evidence_document


def run(
    settings: Any,
    query: str,
    picture: Path | None = None,
    box: tuple[int, int, int, int] | None = None,
    *,
    as_json: bool = False,
) -> None:
    """The command. Raises UserError; exits with 1 when the search failed."""
    with tempfile.TemporaryDirectory(prefix="mmsearch-search-") as scratch:
        store = BlobImages(BlobStore(scratch))
        if picture is None:
            request = ToolRequest(Tool.TEXT_SEARCH, query, question=query)
        else:
            request = ToolRequest(Tool.IMAGE_SEARCH, query, put_picture(store, picture), box=box)
        result, totals = asyncio.run(_call(settings, store, request))
    if as_json:
        print(json.dumps(document(result, totals), indent=2))
    else:
        show(result, totals, Console())
    if result.outcome not in (Outcome.OK, Outcome.EMPTY):
        raise SystemExit(2 if result.outcome in (Outcome.POLICY_ERROR, Outcome.REFUSED) else 1)


async def _call(settings: Any, store: Any, request: ToolRequest) -> tuple[ToolResult, Totals]:
    gateway = build_gateway(settings.search, store)
    try:
        await gateway.open()
        result = await gateway.call(request, deadline=time.monotonic() + settings.search.call_deadline)
    finally:
        await gateway.close()
    return result, gateway.ledger.totals


def document(result: ToolResult, totals: Totals) -> dict[str, Any]:
    """The result and its price as plain values."""
    return {
        "outcome": result.outcome.value,
        "message": result.message,
        "provider": result.provider,
        "seconds": round(result.latency_s, 3),
        "waited_for_quota_s": round(totals.waited_s, 3),
        "requests": totals.requests,
        "tokens": totals.tokens,
        "cost_usd": totals.cost_usd,
        "cached": result.cached,
        "crop_box": list(result.crop_box) if result.crop_box else None,
        "evidence": [evidence_document(item) for item in result.evidence],
    }


def show(result: ToolResult, totals: Totals, console: Console) -> None:
    """For a person: the evidence as the agent gets it, then what it took."""
    if result.crop_box:
        console.print("cut out: pixels {}, {} to {}, {}".format(*result.crop_box), highlight=False)
    if result.message:
        console.print(Text(result.message, style="yellow"))
    for item in result.evidence:
        console.print(Text(f"[{item.number}] ", style="bold") + Text(item.title) + Text(f"  {item.url}", style="dim"))
        console.print(Text(f"    {item.text}"))
    waited = f", {totals.waited_s:.2f} s of it waiting for the quota" if totals.waited_s >= 0.005 else ""
    tokens = f", {totals.tokens} tokens" if totals.tokens else ""
    console.print(
        f"{result.outcome.value}: {result.provider or 'nobody was asked'}, {result.latency_s:.2f} s{waited},"
        f" {totals.requests} requests{tokens}, {totals.cost_usd:.4f} USD",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
