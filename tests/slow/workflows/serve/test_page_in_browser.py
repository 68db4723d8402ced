"""The page in a real browser, at the real service: asking, watching, citations, errors, disconnects, stopping.

Where the service would have to be made to fail, or to say exactly something, the browser is given the bytes of a
stream instead; everything else comes from the service. MMSEARCH_SERVICE_URL: of one that runs already.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import Page, Route, expect

from tests.slow.browser import PATIENCE_MS, PHONE, Told, keep_screenshot, needs_browser, open_page
from tests.slow.workflows.serve.given_stream import ANSWER, BEGUN, BLUE, HOSTILE, RED, WHOLE, png
from workflows.serve.stream import event

pytestmark = [pytest.mark.slow, needs_browser]
expect.set_options(timeout=PATIENCE_MS)

CHAT = "**/v1/chat/completions"
EXAMPLE = "#examples button"
LAST = ".exchange:last-of-type"


@pytest.fixture
def site(request: pytest.FixtureRequest) -> str:
    """The service's address."""
    given = os.environ.get("MMSEARCH_SERVICE_URL") or request.getfixturevalue("service").url
    return given.rstrip("/") + "/"


# --- what the browser is given instead of a stream of the service -----------------------------------------------------


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


# --- the real service -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_example_is_asked_watched_and_answered(site: str, tmp_path: Path, scheme):
    async with open_page(color_scheme=scheme) as (page, told):
        await page.goto(site)
        await expect(page.locator(EXAMPLE).first).to_be_visible()
        await keep_screenshot(page, tmp_path, f"page-{scheme}-empty")
        searched = False
        for number in range(await page.locator(EXAMPLE).count()):  # until one was searched for
            await page.locator(EXAMPLE).nth(number).click()
            await expect(page.locator(".turn").first).to_be_visible()
            await keep_screenshot(page, tmp_path, f"page-{scheme}-running")
            await expect(page.locator(".facts, .trouble").first).to_be_visible()
            assert re.search(r"s · \d+ search(es)? · .* tokens? · weights version \d+", await page.inner_text(".facts"))
            assert (await page.inner_text(".answer")).strip()
            searched = await page.locator(".evidence li").count() > 0
            if searched:
                break
            await page.click("#anew")
        assert searched
        await keep_screenshot(page, tmp_path, f"page-{scheme}-answered")
        await ask(page, "what colour is it?")
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()
        assert await page.locator(".exchange").count() == 2
        of_the_service_alone(told, site)
        assert told.console == []


async def test_on_a_telephone_nothing_scrolls_sideways(site: str, tmp_path: Path):
    async with open_page(PHONE, has_touch=True) as (page, told):
        await page.goto(site)
        await page.locator(EXAMPLE).first.tap()
        await expect(page.locator(".facts, .trouble").first).to_be_visible()
        await keep_screenshot(page, tmp_path, "page-phone-answered")
        await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", png(200, 100, RED))])
        await ask(page, "a" * 200)
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()
        await keep_screenshot(page, tmp_path, "page-phone-crop")
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        of_the_service_alone(told, site)


async def test_a_refusal_of_the_service_is_told_in_its_words(site: str, tmp_path: Path):
    async with open_page() as (page, told):
        await page.goto(site)
        await ask(page, "why? " * 10_000)
        await expect(page.locator(".trouble")).to_contain_text("characters")
        assert await page.locator(".trouble").get_attribute("role") == "alert"
        assert await page.locator(".trouble button").count() == 0  # it would be refused again
        assert await page.input_value("#words") == ("why? " * 10_000).strip()  # one can shorten it
        await keep_screenshot(page, tmp_path, "page-refused")
        of_the_service_alone(told, site)


# --- what is shown of a stream ----------------------------------------------------------------------------------------


async def test_crop_evidence_and_citations_are_shown_and_nothing_of_it_is_markup(site: str, tmp_path: Path):
    async with open_page() as (page, told):
        await page.goto(site)
        asked = await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", png(100, 100, BLUE))])
        await ask(page, "what is this?")
        await expect(page.locator(".facts")).to_contain_text("1 search · $0.0150 · 1,234 tokens · weights version 41")
        await expect(page.locator("#model")).to_contain_text("version 41")  # new weights came since the page was opened
        box = await page.evaluate(
            "(({left, top, width, height}) => [left, top, width, height])(document.querySelector('.box').style)"
        )
        assert box == ["10%", "20%", "50%", "60%"]
        assert await page.locator(".cut").get_attribute("viewBox") == "10 20 50 60"
        assert await page.inner_text(".answer") == ANSWER.replace("[2]", "2")
        assert await page.inner_text(".reason >> nth=0") == f"Seen in 1: {HOSTILE}"
        assert await page.locator(".evidence img").count() == 1  # what is no picture is not shown as one
        assert await page.locator("a[href^='javascript']").count() == 0
        link = page.locator(".evidence a.url")
        assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
        await expect(page.locator(".sources li")).to_have_text("2 title 2")
        await page.click(".answer .cite")
        assert await page.evaluate("document.activeElement.querySelector('b').textContent") == "title 2"
        await keep_screenshot(page, tmp_path, "page-crop-and-citations")
        assert asked[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
        of_the_service_alone(told, site)


async def test_a_follow_up_takes_the_conversation_along(site: str):
    async with open_page() as (page, _):
        await page.goto(site)
        asked = await gives(page)
        await page.set_input_files("#files", [file("a.png", "image/png", png(10, 10, RED))])
        await ask(page, "first")
        await expect(page.locator(".facts")).to_be_visible()
        await page.click("label.switch")
        await ask(page, "second")
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()
        assert [one["role"] for one in asked[1]["messages"]] == ["user", "assistant", "user"]
        assert asked[1]["messages"][0] == asked[0]["messages"][0]
        assert asked[1]["messages"][1]["content"] == ANSWER
        assert [one["tool_choice"] for one in asked] == ["auto", "none"]
        assert (asked[0]["stream"], asked[0]["include_thumbnails"]) == (True, True)


# --- when it goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [BEGUN, WHOLE[: WHOLE.index(b"annotations")]])
async def test_a_stream_that_breaks_off_says_so(site: str, tmp_path: Path, body):
    async with open_page() as (page, _):
        await page.goto(site)
        await gives(page, body)
        await ask(page, "what is this?")
        await expect(page.locator(".trouble")).to_contain_text("broke off")
        await keep_screenshot(page, tmp_path, "page-broken-off")
        asked = await gives(page)
        await page.click(".trouble button")
        await expect(page.locator(".facts")).to_be_visible()
        assert await page.locator(".exchange").count() == 1
        assert len(asked[0]["messages"]) == 1  # what broke off is not part of the conversation


async def test_a_failure_in_the_stream_is_told(site: str):
    async with open_page() as (page, _):
        await page.goto(site)
        await gives(page, BEGUN + event({"error": {"message": "The engine failed.", "type": "server_error"}}))
        await ask(page, "what is this?")
        await expect(page.locator(".trouble")).to_contain_text("The engine failed.")
        assert await page.locator(".evidence li").count() == 2  # what had come stays


async def test_a_busy_service_is_asked_again_when_it_said(site: str, tmp_path: Path):
    async with open_page() as (page, _):
        await page.goto(site)
        refusal = json.dumps({"error": {"message": "Too many.", "type": "rate_limit_error", "code": "x"}}).encode()
        await gives(page, refusal, 429, **{"Retry-After": "2"})
        await ask(page, "what is this?")
        retry = page.locator(".trouble button")
        await expect(retry).to_have_text("Ask again in 2 s")
        await expect(retry).to_be_disabled()
        await keep_screenshot(page, tmp_path, "page-busy")
        await gives(page)
        await expect(retry).to_be_enabled()
        await retry.click()
        await expect(page.locator(".facts")).to_be_visible()


async def test_a_service_that_is_gone_is_told_before_and_after_a_question(site: str):
    async with open_page() as (page, _):
        await page.goto(site)
        await expect(page.locator("#model")).not_to_be_empty()
        await page.route(CHAT, lambda route: route.abort())
        await ask(page, "what is this?")
        await expect(page.locator(".trouble")).to_contain_text("cannot be reached")
        await page.route("**/about", lambda route: route.abort())
        await page.reload()
        await expect(page.locator("#trouble")).to_contain_text("cannot be reached")
        await page.unroute("**/about")
        await page.click("#trouble button")
        await expect(page.locator("#model")).not_to_be_empty()


async def test_stopping_ends_the_request_and_lets_one_ask_on(site: str):
    async with open_page() as (page, _):
        await page.goto(site)
        ended: list[str] = []
        page.on("requestfailed", lambda request: ended.append(request.failure or ""))

        async def never(_: Route) -> None:
            """Leaves it without an answer."""

        await page.route(CHAT, never)
        await ask(page, "what is this?")
        await expect(page.locator("#ask")).to_be_hidden()
        await page.click("#stop")
        await expect(page.locator(".trouble")).to_contain_text("Stopped")
        assert ended == ["net::ERR_ABORTED"]
        await gives(page)
        await ask(page, "and this?")
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()


# --- pictures, consent, keys ------------------------------------------------------------------------------------------


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


def _pictures(asked: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in asked["messages"][0]["content"] if part["type"] == "image_url"]


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


# --- for everybody ----------------------------------------------------------------------------------------------------


async def test_everything_has_a_name_and_is_reached_by_the_keyboard(site: str):
    async with open_page(reduced_motion="reduce") as (page, _):
        await page.goto(site)
        await expect(page.locator(EXAMPLE).first).to_be_visible()
        tree = await page.locator("body").aria_snapshot()
        for part in (
            'textbox "Your question"',
            'button "Ask"',
            'switch "Search if needed"',
            'heading "Ask about',
            "main",
        ):
            assert part in tree, part
        reached = []
        for _ in range(6 + await page.locator(EXAMPLE).count()):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached[0] == "skip"
        assert [name for name in reached if name in ("words", "choose", "search", "ask")] == [
            "words", "choose", "search", "ask",
        ]  # fmt: skip
        await gives(page)
        await ask(page, "what is this?")
        await expect(page.locator("#status")).to_contain_text("Answer:")
        assert await page.evaluate("getComputedStyle(document.querySelector('.turn')).animationName") == "none"
