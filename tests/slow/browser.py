"""A real headless Chromium for the tests of pages, driven by Playwright, and what it told while they ran.

Any Chromium or Chrome on PATH, or at MMSEARCH_BROWSER, will do; Playwright's own download is not needed. Screenshots go
to MMSEARCH_ARTIFACTS, where somebody wants to look at them, or stay with the test's temporary files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
BROWSER = os.environ.get("MMSEARCH_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE_MS = 60_000.0  # for anything that a page should come to show, on a busy machine
SCROLLED = """new Promise((done) => {
  let at = NaN;
  const look = () => { if (scrollY === at) done(); else { at = scrollY; setTimeout(look, 100); } };
  look();
})"""
DESKTOP, PHONE = (1280, 860), (375, 812)  # CSS pixels

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH or at MMSEARCH_BROWSER")


@dataclass
class Told:
    """Everything that a page should have kept to itself."""

    errors: list[str] = field(default_factory=list)  # exceptions that nobody caught
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # addresses, data: and blob: ones left out

    def listen(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("request", lambda request: self._request(request.url))

    def _request(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.requests.append(url)


@asynccontextmanager
async def open_page(size: tuple[int, int] = DESKTOP, **context: Any) -> AsyncIterator[tuple[Page, Told]]:
    """One tab of a browser of its own. `context`: of Playwright's `new_context`, such as `color_scheme`."""
    async with async_playwright() as playwright:
        # no sandbox: tests run as root in containers, and open what is served on loopback alone
        browser = await playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        try:
            viewport: Any = {"width": size[0], "height": size[1]}
            page = await (await browser.new_context(viewport=viewport, **context)).new_page()
            page.set_default_timeout(PATIENCE_MS)
            told = Told()
            told.listen(page)
            yield page, told
        finally:
            await browser.close()


async def keep_screenshot(page: Page, tmp_path: Path, name: str) -> Path:
    """As it is on the screen now, when nothing scrolls or moves any more; returns where it lies."""
    folder = Path(os.environ.get("MMSEARCH_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    await page.evaluate(SCROLLED)
    await page.screenshot(path=folder / f"{name}.png", animations="disabled")
    return folder / f"{name}.png"
