"""The report in a real browser: nothing is asked for, and everything works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.slow.browser import PHONE, keep_screenshot, needs_browser, open_page
from tests.unit.workflows.report.made_run import made_run
from workflows.report.run import write_report

pytestmark = [pytest.mark.slow, needs_browser]


async def filtered(page: Page, name: str, value: str) -> list[str]:
    """Sets a filter as a person does, and returns the questions that are listed."""
    await page.evaluate(
        f"{{ const field = document.getElementById('filters').elements[{json.dumps(name)}];"
        f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
    )
    return await page.locator("#list .q").all_text_contents()


async def test_the_report_works_from_a_file_without_a_request_or_an_error(tmp_path):
    written = write_report([made_run(tmp_path / "run")])
    address = Path(written.address).as_uri()
    async with open_page() as (page, told):
        await page.goto(address)
        everything = await filtered(page, "arm", "")
        assert len(everything) == await page.evaluate(
            "JSON.parse(document.getElementById('data').textContent).episodes.length"
        )
        assert 0 < len(await filtered(page, "outcome", "wrong")) < len(everything)
        assert "onerror" in (await page.text_content("#detail") or "")
        assert await page.locator("img").count() == 0
        await filtered(page, "outcome", "")
        assert len(await filtered(page, "tool", "crop")) < len(everything)
        assert await page.locator("#detail rect.box").count() >= 1
        assert await filtered(page, "q", "no such words anywhere") == []
        await filtered(page, "q", "")
        await _walks(page)
        await _themes(page)
        await keep_screenshot(page, tmp_path, "report")
        await _fits(page)
        assert {url.partition("#")[0] for url in told.requests} <= {address}
        assert (told.errors, told.console) == ([], [])


async def _walks(page: Page) -> None:
    """j goes on and k back; what is shown stands in the address, and the address brings it back."""
    hash_now = "location.hash"
    first = await page.evaluate(hash_now)
    await page.keyboard.press("j")
    second = await page.evaluate(hash_now)
    assert first != second
    await page.keyboard.press("k")
    assert await page.evaluate(hash_now) == first
    assert "tool=crop" in first
    changed = "new Promise((done) => addEventListener('hashchange', () => done(location.hash), {once: true}))"
    assert await page.evaluate(f"location.hash = {json.dumps(second)}, {changed}") == second
    assert await page.locator("#list li").nth(1).get_attribute("class") == "on"


async def _themes(page: Page) -> None:
    """The button goes from the system's colours to light to dark."""
    colours = []
    for _ in range(2):
        await page.click("#theme")
        colours.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"


async def _fits(page: Page) -> None:
    """On a telephone the page does not scroll sideways."""
    await page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert await page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
