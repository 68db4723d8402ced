"""What leaves the browser, in a real one at the real service: pictures as they are sent, consent to send them, keys."""

from __future__ import annotations

import asyncio
import base64
import io
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import Route, expect

from tests.slow.browser import PATIENCE_MS, keep_screenshot, needs_browser, open_page
from tests.slow.workflows.serve.at_the_page import (
    CHAT,
    EXAMPLE,
    LAST,
    ask,
    file,
    gives,
    leave_unanswered,
    told_about,
)
from tests.slow.workflows.serve.given_stream import BEGUN, BLUE, RED, png

pytestmark = [pytest.mark.slow, needs_browser]
expect.set_options(timeout=PATIENCE_MS)


async def test_a_large_photo_is_made_smaller_and_loses_where_it_was_taken(site: str):
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x010E], exif[0x0112] = "taken at home", 6  # to be turned by a quarter
    Image.new("RGB", (3000, 1500), RED).save(sink, "JPEG", exif=exif)
    small = png(30, 20, BLUE)
    async with open_page() as (page, _):
        await page.goto(site)
        await told_about(page, limits={"pictures": 2, "picture_mib": 20, "body_mib": 32})
        await page.reload()
        asked = await gives(page)
        photo, whole = file("photo.jpg", "image/jpeg", sink.getvalue()), file("b.png", "image/png", small)
        await page.set_input_files("#files", [photo, whole, whole])
        await expect(page.locator("#complaint")).to_have_text("A question takes 2 pictures here at most.")
        await ask(page, "what are these?")
        await expect(page.locator(".facts")).to_be_visible()
        sent = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in _pictures(asked[0])]
        with Image.open(io.BytesIO(sent[0])) as picture:
            assert (picture.size, picture.format, dict(picture.getexif())) == ((1024, 2048), "JPEG", {})
        assert sent[1:] == [small]


async def test_a_picture_waits_for_the_bounds_that_the_service_tells(site: str):
    told = asyncio.Event()

    async def late(route: Route) -> None:
        await told.wait()
        await route.fulfill(json={**(await (await route.fetch()).json()), "limits": {"pictures": 1}})

    async with open_page() as (page, _):
        await page.route("**/about", late)
        await page.goto(site)
        await page.set_input_files("#files", [file(name, "image/png", png(20, 10, RED)) for name in ("a.png", "b.png")])
        assert await page.locator("#picked li").count() == 0
        told.set()
        await expect(page.locator("#complaint")).to_have_text("A question takes 1 picture here at most.")
        await expect(page.locator("#picked li")).to_have_count(1)


def _pictures(asked: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in asked["messages"][0]["content"] if part["type"] == "image_url"]


def noise(side: int) -> bytes:
    """A picture that nothing makes smaller: about three bytes a pixel."""
    sink = io.BytesIO()
    Image.frombytes("RGB", (side, side), Random(side).randbytes(3 * side * side)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("bound", ["picture_mib", "body_mib"])
@pytest.mark.parametrize(("mib", "side"), [(0.5, 350), (1.5, 610), (4096, 350)])
async def test_bounds_are_any_number_of_mebibytes(site: str, bound, mib, side):
    async with open_page() as (page, _):
        await told_about(page, limits={"pictures": 2, "picture_mib": 20, "body_mib": 32} | {bound: mib})
        await page.goto(site)
        asked = await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", noise(side))])
        await ask(page, "what is this?")
        await expect(page.locator(".facts")).to_be_visible()
        assert [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in _pictures(asked[0])] == [
            noise(side)
        ]


async def test_what_is_over_a_bound_is_told_before_it_is_sent(site: str):
    async with open_page() as (page, _):
        await told_about(page, limits={"pictures": 2, "picture_mib": 0.75, "body_mib": 0.5})
        await page.goto(site)
        asked = await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", noise(1200))])
        await expect(page.locator("#complaint")).to_have_text("a.png is over 0.75 MiB.")
        await page.set_input_files("#files", [file("b.png", "image/png", noise(400))])
        await ask(page, "what is this?")
        await expect(page.locator(".trouble")).to_contain_text("over the 0.5 MiB of a request")
        await page.click("#picked button")
        await page.fill("#words", "")
        await ask(page, "é" * 300_000)  # half as many characters as bytes
        await expect(page.locator(LAST).locator(".trouble")).to_contain_text("over the 0.5 MiB of a request")
        assert asked == []


@pytest.mark.parametrize("event", ["drop", "paste"])
async def test_pictures_are_dropped_and_pasted(site: str, event):
    async with open_page() as (page, _):
        await page.goto(site)
        carried = await page.evaluate_handle(
            "(bytes) => { const carried = new DataTransfer();"
            "carried.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'})); return carried; }",
            list(png(20, 10, RED)),
        )
        if event == "drop":
            await page.dispatch_event("main", "dragenter", {"dataTransfer": carried})
            await expect(page.locator("#drop")).to_be_visible()
            await page.dispatch_event("main", "drop", {"dataTransfer": carried})
        else:
            pastes = "new ClipboardEvent('paste', {clipboardData: carried, bubbles: true})"
            await page.evaluate(f"(carried) => document.body.dispatchEvent({pastes})", carried)
        await expect(page.locator("#picked img")).to_have_count(1)
        await expect(page.locator("#drop")).to_be_hidden()
        await page.get_by_role("button", name="Remove a.png").click()
        await expect(page.locator("#picked img")).to_have_count(0)


async def test_what_is_no_picture_is_refused_before_it_is_sent(site: str, tmp_path: Path):
    async with open_page() as (page, _):
        await page.goto(site)
        await page.set_input_files("#files", [file("notes.png", "image/png", b"no picture at all")])
        await expect(page.locator("#complaint")).to_have_text("notes.png is no picture that this browser can read.")
        assert await page.locator("#picked li").count() == 0
        await keep_screenshot(page, tmp_path, "page-no-picture")


async def test_pictures_leave_the_service_only_with_consent(site: str, tmp_path: Path):
    async with open_page() as (page, _):
        await told_about(page, uploads=["lens (serpapi.com)"])
        await page.goto(site)
        asked = await gives(page)
        await expect(page.locator("#whither")).to_contain_text("lens (serpapi.com)")
        example = page.locator(EXAMPLE).first
        await example.click()
        await expect(page.locator("#consent")).to_contain_text("lens (serpapi.com)")
        await keep_screenshot(page, tmp_path, "page-consent")
        await page.keyboard.press("Escape")
        await expect(page.locator("#consent")).to_be_hidden()
        assert (asked, await page.locator(".exchange").count()) == ([], 0)
        for choice, expected in (("unsearched", "none"), ("yes", "auto")):
            await example.click()
            await page.click(f"#consent button[value={choice}]")
            await expect(page.locator(".facts")).to_be_visible()
            assert asked[-1]["tool_choice"] == expected
            await page.click("#anew")
        await example.click()  # once is enough
        await expect(page.locator(".facts")).to_be_visible()
        assert len(asked) == 3


@pytest.mark.parametrize("unfinished", ["failed", "stopped"])
async def test_a_question_that_is_asked_again_takes_no_picture_along_without_consent(site: str, unfinished):
    async with open_page() as (page, _):
        await told_about(page, uploads=["lens (serpapi.com)"])
        await page.goto(site)
        await expect(page.locator("#whither")).to_contain_text("lens (serpapi.com)")
        if unfinished == "failed":
            await gives(page, BEGUN)
            await ask(page, "who was it?")
        else:
            await page.route(CHAT, leave_unanswered)
            await ask(page, "who was it?")
            await page.click("#stop")
        retry = page.locator(".exchange >> nth=0 >> .trouble button")
        await expect(retry).to_be_visible()
        asked = await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", png(20, 10, RED))])
        await ask(page, "and this?")
        await page.click("#consent button[value=unsearched]")
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()
        for choice, expected in (("no", []), ("unsearched", ["none"]), ("yes", ["auto"])):
            del asked[:]
            await retry.click()
            await expect(page.locator("#consent")).to_be_visible()
            async with page.expect_response(CHAT) if expected else nullcontext():
                await page.click(f"#consent button[value={choice}]")
            await expect(page.locator("#consent")).to_be_hidden()
            await expect(page.locator("#ask")).to_be_visible()
            assert [one["tool_choice"] for one in asked] == expected


async def test_a_service_with_keys_wants_one_and_it_stays_in_the_tab(site: str):
    async with open_page() as (page, _):
        await told_about(page, keys=True)
        await page.goto(site)
        asked = await gives(page)
        await ask(page, "may I?")
        await expect(page.locator("#complaint")).to_contain_text("API key")
        assert await page.evaluate("document.activeElement.id") == "key"
        await page.keyboard.type("mms-something")
        await page.keyboard.press("Enter")
        await ask(page, "may I?")
        await expect(page.locator(".facts")).to_be_visible()
        assert asked[0]["authorization"] == "Bearer mms-something"
        assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        refusal = b'{"error": {"message": "This key is not known here.", "code": "invalid_api_key"}}'
        await gives(page, refusal, 401)
        await ask(page, "still?")
        await expect(page.locator(".trouble")).to_contain_text("not known")
        await expect(page.locator("#door")).to_be_visible()
