"""Rows of strangers: any JSON, and none of it raises anything but a ProviderError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.providers import brave, jina, retriever, searxng, serpapi, serper, tavily
from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import hits, mapping, number, plain, text, web_url
from actors.search.seams import ErrorKind, ProviderError, TextHit

API = JsonApi("Someone", "https://api.example", lambda reply: None)
WORDS = st.sampled_from(
    [
        *("error", "errors", "detail", "code", "meta", "loc", "message", "status", "search_metadata", "type"),
        *("url", "title", "httpStatus", "warning", "usage", "tokens", "data"),
    ]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("https://a.example")
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4))
JUDGES = [module._complaint for module in (brave, jina, retriever, searxng, serpapi, serper, tavily)]


@given(st.dictionaries(WORDS, JSON, max_size=5), st.integers(200, 599), st.sampled_from(JUDGES))
def test_any_body_is_judged_and_every_kind_of_complaint_is_a_known_one(body, status, judge):
    complaint = judge(Reply(status, {}, body))
    if complaint is not None:
        assert isinstance(complaint, Complaint)
        assert isinstance(complaint.text, str)


@given(st.dictionaries(WORDS, JSON, max_size=5))
def test_any_page_is_judged_and_its_tokens_are_a_figure(body):
    assert jina._tokens(body) >= 0
    problem = jina._page_problem(body)
    assert problem is None or problem[0] is not ErrorKind.RATE


def read(row):
    return TextHit(text(row.get("title")), web_url(row.get("url")), text(row.get("text")), number(row.get("score")))


@given(st.lists(JSON, max_size=6), st.integers(1, 5))
def test_any_rows_give_hits_with_addresses_or_one_error(rows, k):
    if rows and not any(isinstance(row, dict) and web_url(row.get("url")) for row in rows):
        with pytest.raises(ProviderError) as caught:
            hits(API, rows, k, read)
        assert caught.value.kind is ErrorKind.SCHEMA
        return
    found = hits(API, rows, k, read)
    assert len(found) <= k
    assert all(hit.url.startswith(("http://", "https://")) for hit in found)
    assert len({hit.url for hit in found}) == len(found)


def test_the_first_of_two_rows_with_one_address_stays_and_the_order_too():
    one = {"url": "https://a.example/1", "title": "first"}
    rows = [one, {"url": "https://a.example/2", "title": "second"}, {**one, "title": "again"}]
    assert [hit.title for hit in hits(API, rows, 9, read)] == ["first", "second"]


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://a.example/x?y#z", "https://a.example/x?y#z"),
        (" http://a.example ", "http://a.example"),
        ("HTTPS://A.example/", "HTTPS://A.example/"),
        ("//a.example/x", ""),
        ("/x", ""),
        ("https://", ""),
        ("https:///x", ""),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("ftp://a.example", ""),
        ("https://a.example/\nx", ""),
        ("https://a.example/\u202ex", ""),
        ("https://[::1", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_only_absolute_addresses_of_the_web_count(value, url):
    assert web_url(value) == url


@pytest.mark.parametrize(
    ("value", "figure"),
    [(1, 1.0), (0.5, 0.5), (True, 0.0), ("1", 0.0), (None, 0.0), (float("nan"), 0.0), (10**400, 0.0)],
)
def test_only_figures_count_as_figures(value, figure):
    assert number(value) == figure


@given(JSON)
def test_readers_take_anything(value):
    assert isinstance(text(value), str)
    assert isinstance(web_url(value), str)
    assert isinstance(number(value), float)
    assert isinstance(mapping(value), dict)


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ("<strong>Velmora</strong> was", "Velmora was"),
        ("a &amp; b &#39;c&#39;", "a & b 'c'"),
        ("x &lt;script&gt;", "x <script>"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("<!-- no --> yes <br/>", "yes"),
        ("<a" * 50_000, "<a" * 50_000),
    ],
)
def test_markup_becomes_text(markup, said):
    assert plain(markup) == said
