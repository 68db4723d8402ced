"""The page in a real browser, at the real service: asking, watching, citations, errors, disconnects, stopping (its
pictures, consent and keys: test_page_pictures.py).

Where the service would have to be made to fail, or to say exactly something, the browser is given the bytes of a
stream instead; everything else comes from the service. MMSEARCH_SERVICE_URL: of one that runs already.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.slow.browser import PATIENCE_MS, PHONE, keep_screenshot, needs_browser, open_page
from tests.slow.workflows.serve.at_the_page import (
    CHAT,
    EXAMPLE,
    LAST,
    ask,
    file,
    gives,
    leave_unanswered,
    of_the_service_alone,
)
from tests.slow.workflows.serve.given_stream import ANSWER, BEGUN, BLUE, HOSTILE, RED, WHOLE, cut_short, png
from workflows.serve.stream import event

pytestmark = [pytest.mark.slow, needs_browser]
expect.set_options(timeout=PATIENCE_MS)


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


@pytest.mark.parametrize(
    ("reason", "notices", "says"),
    [
        ("length", [], "no room to write more"),
        ("max_turns", [], "used up its turns"),
        ("max_tool_calls", [], "used up the searches"),
        ("max_tool_calls", ["The request's bound of 1 search is reached."], "bound of 1 search is reached"),
        ("max_cost", ["The request's bound of 1 USD is reached."], "bound of 1 USD is reached"),
        ("max_seconds", ["There was no answer within 120 s."], "no answer within 120 s"),
    ],
)
async def test_what_a_bound_cut_short_is_shown_as_far_as_it_is_known(site: str, tmp_path: Path, reason, notices, says):
    known = "What was found:\n[1] title 1: text"
    async with open_page() as (page, told):
        await page.goto(site)
        await gives(page, cut_short(reason, known, *notices))
        await ask(page, "what is this?")
        await expect(page.locator(".facts")).to_contain_text("1 search")
        assert await page.inner_text(".answer") == known.replace("[1]", "1")
        await expect(page.get_by_text(says)).to_be_visible()  # once
        assert await page.locator(".evidence li").count() == 2
        assert await page.locator(".trouble").count() == 0
        await keep_screenshot(page, tmp_path, f"page-cut-short-{reason}")
        of_the_service_alone(told, site)


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
        await page.route(CHAT, leave_unanswered)
        await ask(page, "what is this?")
        await expect(page.locator("#ask")).to_be_hidden()
        await page.click("#stop")
        await expect(page.locator(".trouble")).to_contain_text("Stopped")
        assert ended == ["net::ERR_ABORTED"]
        await gives(page)
        await ask(page, "and this?")
        await expect(page.locator(LAST).locator(".facts")).to_be_visible()


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
