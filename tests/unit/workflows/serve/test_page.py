from __future__ import annotations

import re
from importlib import resources

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from workflows.serve.about import Example
from workflows.serve.page import FILES, HEADERS, routes

PICTURE = Example("what is it?", b"\x89PNG...", "image/png")
REFERENCE = re.compile(r"(?:src|href)=\"([^\"#]+)\"|from \"([^\"]+)\"|url\(([^)]+)\)")


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=routes([PICTURE])))


def test_the_page_is_whole_every_file_that_it_names_is_served(client):
    index = client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    named = {"/"}
    left = ["/"]
    while left:
        at = left.pop()
        answer = client.get(at)
        assert answer.status_code == 200, at
        for groups in REFERENCE.findall(answer.text):
            target = "/" + "".join(groups) if at == "/" else "/page/" + "".join(groups).removeprefix("./")
            if target not in named:
                named.add(target)
                left.append(target)
    assert {name.removeprefix("/page/") for name in named} == {*FILES, "/"} - {"index.html"}


def test_nothing_of_the_page_needs_another_host_or_an_inline_script():
    for name, held in FILES.items():
        text = held.body.decode()
        others = set(re.findall(r"https?://[^\s\"'`<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not others, name
        assert "innerHTML" not in text
        assert "outerHTML" not in text
        assert "insertAdjacentHTML" not in text
    index = FILES["index.html"].body.decode()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", index)


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/examples/0", "/page/none.js"])
def test_every_answer_keeps_the_page_to_itself(client, path):
    headers = client.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "path",
    ["/page/../page.py", "/page/%2e%2e/settings.py", "/page/..%2fpage.py", "/page/index.py", "/page/", "/examples/1"],
)
def test_what_is_no_file_of_the_page_is_not_there(client, path):
    assert client.get(path).status_code == 404


def test_a_browser_that_has_a_file_is_told_so(client):
    first = client.get("/page/page.js")
    again = client.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/page.js", headers={"If-None-Match": '"other"'}).content == first.content


def test_the_colours_are_those_of_the_report(client):
    assert client.get("/page/colours.css").content == (resources.files("workflows.report") / "colours.css").read_bytes()


def test_an_example_is_served_byte_by_byte(client):
    answer = client.get("/examples/0")
    assert (answer.content, answer.headers["content-type"]) == (PICTURE.data, "image/png")


def test_only_reading_is_possible(client):
    assert client.post("/").status_code == 405
    assert client.head("/").status_code == 200
