"""What a test of the page does with its tab: asks, and has the service's answers replaced by bytes that it is given."""

from __future__ import annotations

import json
from typing import Any

from playwright.async_api import Page, Route

from tests.slow.browser import Told
from tests.slow.workflows.serve.given_stream import WHOLE

CHAT = "**/v1/chat/completions"
EXAMPLE = "#examples button"
LAST = ".exchange:last-of-type"


async def gives(page: Page, body: bytes = WHOLE, status: int = 200, **headers: str) -> list[dict[str, Any]]:
    """From now on every question is answered with this. Returns what was asked, as it comes."""
    asked: list[dict[str, Any]] = []

    async def answer(route: Route) -> None:
        request: dict[str, Any] = json.loads(route.request.post_data or "{}")
        asked.append(request | {"authorization": route.request.headers.get("authorization")})
        kind = "text/event-stream" if status == 200 else "application/json"
        await route.fulfill(status=status, body=body, headers={"Content-Type": kind, **headers})

    await page.unroute(CHAT)
    await page.route(CHAT, answer)
    return asked


async def leave_unanswered(_: Route) -> None:
    """What a question gets that one wants to stop."""


async def told_about(page: Page, **changed: Any) -> None:
    """`GET /about` says this, too."""

    async def answer(route: Route) -> None:
        said = await (await route.fetch()).json()
        await route.fulfill(json={**said, **changed})

    await page.route("**/about", answer)


def file(name: str, kind: str, data: bytes) -> Any:
    return {"name": name, "mimeType": kind, "buffer": data}


async def ask(page: Page, question: str) -> None:
    await page.fill("#words", question)
    await page.keyboard.press("Control+Enter")


def of_the_service_alone(told: Told, site: str) -> None:
    assert [url for url in told.requests if not url.startswith(site)] == []
    assert told.errors == []
