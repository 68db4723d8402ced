"""The report in a real browser, driven over the DevTools protocol: nothing is asked for, and everything works.

Any Chromium or Chrome on PATH, or at MMSEARCH_BROWSER, will do.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.unit.workflows.report.made_run import made_run
from workflows.report.run import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
BROWSER = os.environ.get("MMSEARCH_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
START_S = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH or at MMSEARCH_BROWSER"),
]


class Page:
    """One tab. `events` are what it has told: errors, requests, messages of the console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            told = await self._socket.receive_json(timeout=START_S)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    async def value(self, script: str) -> Any:
        result = await self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def open(self, address: str) -> None:
        """Returns when all scripts have run."""
        await self.command("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(await self._socket.receive_json(timeout=START_S))

    def told(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    process = await asyncio.create_subprocess_exec(
        str(BROWSER), *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = await _port(process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tab = next(tab for tab in await answer.json() if tab["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.command(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    """Where it listens, as it says itself."""
    assert process.stderr is not None
    async with asyncio.timeout(START_S):
        async for line in process.stderr:
            if b"DevTools listening on" in line:
                return int(line.decode().split("://")[1].split("/")[0].rpartition(":")[2])
    raise AssertionError("the browser ended before it listened")


async def filtered(page: Page, name: str, value: str) -> list[str]:
    """Sets a filter as a person does, and returns the questions that are listed."""
    await page.value(
        f"{{ const field = document.getElementById('filters').elements[{json.dumps(name)}];"
        f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
    )
    return await page.value("[...document.querySelectorAll('#list .q')].map((node) => node.textContent)")


async def test_the_report_works_from_a_file_without_a_request_or_an_error(tmp_path):
    written = write_report([made_run(tmp_path / "run")])
    address = Path(written.address).as_uri()
    async with browser(tmp_path / "profile") as page:
        await page.open(address)
        everything = await filtered(page, "arm", "")
        assert len(everything) == await page.value(
            "JSON.parse(document.getElementById('data').textContent).episodes.length"
        )
        assert 0 < len(await filtered(page, "outcome", "wrong")) < len(everything)
        assert await page.value("document.querySelector('#detail').textContent.includes('onerror')")
        assert await page.value("document.querySelectorAll('img').length") == 0
        await filtered(page, "outcome", "")
        assert len(await filtered(page, "tool", "crop")) < len(everything)
        assert await page.value("document.querySelectorAll('#detail rect.box').length") >= 1
        assert await filtered(page, "q", "no such words anywhere") == []
        await filtered(page, "q", "")
        await _walks(page)
        await _themes(page)
        await _fits(page)
        requests = [told["request"]["url"] for told in page.told("Network.requestWillBeSent")]
        assert {url.partition("#")[0] for url in requests if not url.startswith("data:")} <= {address}
        assert page.told("Runtime.exceptionThrown") == []
        assert page.told("Log.entryAdded") == []
        assert page.told("Runtime.consoleAPICalled") == []


async def _walks(page: Page) -> None:
    """j goes on and k back; what is shown stands in the address, and the address brings it back."""
    press = "dispatchEvent(new KeyboardEvent('keydown', {key: '%s'})), location.hash"
    first = await page.value("location.hash")
    second = await page.value(press % "j")
    assert first != second
    assert await page.value(press % "k") == first
    assert "tool=crop" in first
    changed = "new Promise((done) => addEventListener('hashchange', () => done(location.hash), {once: true}))"
    assert await page.value(f"location.hash = {json.dumps(second)}, {changed}") == second
    assert await page.value("document.querySelectorAll('#list li')[1].className") == "on"


async def _themes(page: Page) -> None:
    """The button goes from the system's colours to light to dark."""
    click = "document.getElementById('theme').click(), getComputedStyle(document.body).backgroundColor"
    light, dark = await page.value(click), await page.value(click)
    assert light != dark
    assert await page.value("document.documentElement.dataset.theme") == "dark"


async def _fits(page: Page) -> None:
    """On a telephone the page does not scroll sideways."""
    await page.command("Emulation.setDeviceMetricsOverride", width=375, height=812, deviceScaleFactor=2, mobile=True)
    assert await page.value("document.documentElement.scrollWidth") == 375
