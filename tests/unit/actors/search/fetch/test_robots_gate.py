import asyncio

import pytest

from actors.search.fetch import permission
from actors.search.fetch.permission import DAY, UNREACHABLE_FOR, HttpRefusal, RobotsGate
from actors.search.fetch.urls import web_url
from actors.search.seams import ErrorKind, ProviderError
from tests.unit.actors.search.fetch.hostile_site import HERE, answer, hostile_web, page, redirect


class Hours:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Files:
    """Answers for robots.txt by host; counts what it was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    async def __call__(self, url):
        self.asked.append(str(url))
        await asyncio.sleep(0)
        found = self.answers.get(url.raw_host.split(".")[0], b"")
        if isinstance(found, BaseException):
            raise found
        return found


def at(text):
    return web_url(text, (80, 443, 8080))


CLOSED = b"User-agent: *\nDisallow: /closed"


def gate(files, sites=10):
    clock = Hours()
    return RobotsGate(files, "mmsearch-ray", sites, clock), clock


async def test_a_site_is_asked_once_a_day_for_each_scheme_and_port():
    files = Files(a=CLOSED)
    robots, clock = gate(files)
    for _ in range(3):
        await robots.check(at("http://a.org/open?x=1"))
        with pytest.raises(ProviderError) as told:
            await robots.check(at("http://a.org/closed/x"))
        assert told.value.kind is ErrorKind.BAD_REQUEST
    assert files.asked == ["http://a.org/robots.txt"]
    await robots.check(at("https://a.org/"))
    await robots.check(at("http://a.org:8080/"))
    assert files.asked[1:] == ["https://a.org/robots.txt", "http://a.org:8080/robots.txt"]
    clock.now += DAY - 1
    await robots.check(at("http://a.org/"))
    assert len(files.asked) == 3
    clock.now += 1
    await robots.check(at("http://a.org/"))
    assert len(files.asked) == 4


async def test_a_hundred_callers_at_once_ask_once():
    files = Files()
    robots, _ = gate(files)
    await asyncio.gather(*(robots.check(at(f"http://a.org/{n}")) for n in range(100)))
    assert len(files.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 499])
async def test_a_site_without_the_file_is_open(status):
    kind = ErrorKind.RATE if status == 429 else ErrorKind.BAD_REQUEST
    robots, _ = gate(Files(a=HttpRefusal(kind, "no", status)))
    await robots.check(at("http://a.org/x"))


@pytest.mark.parametrize(
    "problem",
    [
        HttpRefusal(ErrorKind.TRANSIENT, "busy", 503),
        ProviderError(ErrorKind.TRANSIENT, "no answer"),
        ProviderError(ErrorKind.SCHEMA, "not HTTP"),
        ProviderError(ErrorKind.BAD_REQUEST, "more than 5 redirects"),
    ],
)
async def test_a_site_whose_file_cannot_be_had_is_closed_for_a_while(problem):
    files = Files(a=problem)
    robots, clock = gate(files)
    for _ in range(2):
        with pytest.raises(ProviderError) as told:
            await robots.check(at("http://a.org/x"))
        assert told.value.kind is ErrorKind.TRANSIENT
    assert len(files.asked) == 1
    clock.now += UNREACHABLE_FOR
    files.answers["a"] = b""
    await robots.check(at("http://a.org/x"))
    assert len(files.asked) == 2


async def test_a_caller_that_leaves_does_not_take_the_file_from_its_sibling():
    files = Files(a=CLOSED)
    robots, _ = gate(files)
    first = asyncio.create_task(robots.check(at("http://a.org/x")))
    second = asyncio.create_task(robots.check(at("http://a.org/x")))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert len(files.asked) == 1


async def test_the_sites_remembered_are_bounded_and_the_least_used_goes_first():
    files = Files()
    robots, _ = gate(files, sites=2)
    for host in ("a", "b", "a", "c", "a"):
        await robots.check(at(f"http://{host}.org/"))
    assert len(files.asked) == 3
    await robots.check(at("http://b.org/"))
    assert len(files.asked) == 4


async def test_what_is_remembered_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(permission, "_MAX_WEIGHT", 100_000)
    large = b"User-agent: *\n" + b"".join(b"Disallow: /%d\n" % n for n in range(200))  # some 60 kB each
    files = Files(a=large, b=large)
    robots, _ = gate(files)
    for host in ("a", "b", "a"):
        await robots.check(at(f"http://{host}.org/"))
    assert len(files.asked) == 3


# --- through the fetcher ----------------------------------------------------------------------------------


@pytest.fixture
async def web():
    async with hostile_web() as web:
        yield web


def robots_txt(text):
    return answer(text.encode(), "Content-Type: text/plain")


async def refusal(web, path, **changes):
    with pytest.raises(ProviderError) as told:
        await web.get(web.site.url(path), robots=True, **changes)
    return told.value


async def test_an_address_that_the_file_forbids_is_not_fetched(web):
    web.site.pages |= {"/robots.txt": robots_txt("User-agent: mmsearch-ray\nDisallow: /a"), "/a": page(), "/b": page()}
    assert (await refusal(web, "/a")).kind is ErrorKind.BAD_REQUEST
    assert web.site.paths == ["/robots.txt"]
    assert (await web.get(web.site.url("/b"), robots=True)).status == 200


async def test_robots_can_be_switched_off(web):
    web.site.pages |= {"/robots.txt": robots_txt("User-agent: *\nDisallow: /"), "/a": page()}
    await web.get(web.site.url("/a"), robots=False)
    assert web.site.paths == ["/a"]


async def test_the_target_of_a_redirect_needs_permission_too(web):
    web.names.answers["b.example.org"] = [[HERE]]
    web.site.pages |= {"/robots.txt": robots_txt("User-agent: *\nDisallow: /b"), "/a": redirect("/b"), "/b": page()}
    assert (await refusal(web, "/a")).kind is ErrorKind.BAD_REQUEST
    assert web.site.paths == ["/robots.txt", "/a"]


async def test_the_file_may_lie_behind_a_redirect(web):
    web.site.pages |= {"/robots.txt": redirect("/r"), "/r": robots_txt("User-agent: *\nDisallow: /a"), "/a": page()}
    assert (await refusal(web, "/a")).kind is ErrorKind.BAD_REQUEST
    assert web.site.paths == ["/robots.txt", "/r"]


@pytest.mark.parametrize("target", ["http://10.0.0.1/robots.txt", "file:///etc/passwd", "/robots.txt"])
async def test_a_file_behind_a_hostile_redirect_closes_the_site(web, target):
    web.site.pages |= {"/robots.txt": redirect(target), "/a": page()}
    assert (await refusal(web, "/a")).kind is ErrorKind.TRANSIENT
    assert "/a" not in web.site.paths


async def test_an_endless_file_is_read_in_part(web):
    async def endless(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /a\n")
        while True:
            writer.write(b"# more and more\n" * 1000)
            await writer.drain()

    web.site.pages |= {"/robots.txt": endless, "/a": page(), "/b": page()}
    assert (await refusal(web, "/a")).kind is ErrorKind.BAD_REQUEST
    assert (await web.get(web.site.url("/b"), robots=True)).status == 200


async def test_a_file_that_never_comes_ends_with_the_deadline(web):
    async def silent(writer):
        await asyncio.Event().wait()

    web.site.pages |= {"/robots.txt": silent, "/a": page()}
    assert (await refusal(web, "/a", deadline=0.1)).kind is ErrorKind.TRANSIENT
    assert "/a" not in web.site.paths


async def test_closing_the_fetcher_ends_what_is_under_way(web):
    async def silent(writer):
        await asyncio.Event().wait()

    web.site.pages["/robots.txt"] = silent
    fetcher = web.fetcher(robots=True)
    fetch = asyncio.create_task(fetcher.get(web.site.url("/a"), accept=["text/html"]))
    while not web.site.requests:
        await asyncio.sleep(0)
    await fetcher.close()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(fetch, 1)
