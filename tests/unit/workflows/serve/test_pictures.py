"""Pictures of a request: in it, or fetched by the guarded fetcher alone."""

import asyncio
import io
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.search.fetch.reader import DirectReader
from actors.search.seams import ErrorKind, ProviderError
from tests.hostile_requests import data_url, png
from tests.unit.actors.search.fetch.hostile_site import answer, hostile_web, redirect
from workflows.serve.errors import ApiError
from workflows.serve.memory_images import MemoryImages
from workflows.serve.pictures import RequestPictures
from workflows.serve.settings import RequestSettings

WEB = "https://example.org/a.png"


def taken_by(reader=None, images=None, **settings):
    return RequestPictures(RequestSettings(**settings), images or MemoryImages(), reader)


async def refusal(pictures, *urls, **within):
    with pytest.raises(ApiError) as refused:
        await pictures.all_of(urls, **within)
    return refused.value


class Web:
    """A reader whose addresses have what a test says; an exception is raised."""

    def __init__(self, **found):
        self.found, self.asked = found, []

    async def fetch_image(self, url):
        self.asked.append(url)
        found = self.found[url.rpartition("/")[2]]
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, asyncio.Event):
            await found.wait()
        return found


def encoded(kind, size=(12, 10)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 90)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
async def test_a_picture_in_the_request_is_taken_as_it_came(kind):
    ((ref, data),) = await taken_by().all_of([data_url(encoded(kind), f"image/{kind}")])
    assert (ref.width, ref.height, data) == (12, 10, encoded(kind))


@pytest.mark.parametrize(
    "head", ["DATA:IMAGE/PNG;BASE64,", "data:image/png;charset=utf-8;base64,", "data:image/jpg;base64,"]
)
async def test_a_data_url_may_be_spelt_as_browsers_and_people_spell_it(head):
    assert await taken_by().all_of([head + data_url(png()).partition(",")[2]])


async def test_pictures_come_back_in_their_order_whichever_is_fetched_first():
    slow = asyncio.Event()
    web = Web(**{"fast.png": png(9, 9)})

    async def fetch_image(url):
        if "slow" in url:
            await slow.wait()
            return png(8, 8)
        slow.set()
        return await Web.fetch_image(web, url)

    web.fetch_image = fetch_image
    urls = ["https://example.org/slow.png", "https://example.org/fast.png", data_url(png(10, 10))]
    assert [ref.width for ref, _ in await taken_by(web).all_of(urls)] == [8, 9, 10]


async def test_no_pictures_are_no_work():
    assert await taken_by().all_of([]) == ()


async def test_the_refusal_says_which_picture_it_is_about():
    error = await refusal(taken_by(), data_url(png()), data_url(b"hello"))
    assert error.message.startswith("Picture 2 cannot be used: this is no image of a known kind")
    assert (error.status, error.code) == (400, "invalid_image")


async def test_a_picture_over_its_bound_is_refused_before_it_is_decoded():
    limit = len(png(40, 40)) / (1 << 20)
    assert await taken_by(picture_mib=limit).all_of([data_url(png(40, 40))])
    error = await refusal(taken_by(picture_mib=limit), data_url(png(40, 40) + b"\0"))
    assert error.status == 413


async def test_a_fetched_picture_over_its_bound_is_refused():
    error = await refusal(taken_by(Web(**{"a.png": bytes(2 << 20)}), picture_mib=1), WEB)
    assert error.status == 413


async def test_without_a_reader_nothing_is_fetched():
    error = await refusal(taken_by(None), WEB)
    assert error.message == "Picture 1 lies elsewhere, and this service fetches none: send it as a data URL."


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.example.org/b", " javascript:alert(1)", "FILE:x", "x", ""]
)
async def test_only_http_is_handed_to_the_fetcher(url):
    web = Web()
    assert (await refusal(taken_by(web), url)).code == "invalid_image_url"
    assert web.asked == []


async def test_what_the_fetcher_refuses_by_its_spelling_is_told():
    web = Web(**{"a.png": ProviderError(ErrorKind.BAD_REQUEST, "port 25 is not one of the web's")})
    assert "is not fetched: port 25" in (await refusal(taken_by(web), WEB)).message


async def test_a_fetch_that_hangs_ends_with_the_requests_time():
    web = Web(**{"a.png": asyncio.Event()})
    error = await refusal(taken_by(web), WEB, within_s=0.01)
    assert error.message == "Picture 1 could not be fetched in time: send it as a data URL."


async def test_a_bug_is_not_told_as_a_refusal_even_beside_one():
    web = Web(**{"a.png": KeyError("bug")})
    with pytest.raises(KeyError):
        await taken_by(web).all_of(["ftp://example.org/", WEB])


async def test_a_client_that_leaves_stops_the_fetch():
    web = Web(**{"a.png": asyncio.Event()})
    task = asyncio.create_task(taken_by(web).all_of([WEB]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_two_pictures_at_most_are_decoded_at_a_time(monkeypatch):
    now, most = 0, 0

    async def in_turns(function, *arguments):
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(5):
            await asyncio.sleep(0)
        now -= 1
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", in_turns)
    pictures = taken_by()
    await asyncio.gather(*(pictures.all_of([data_url(png(8 + n, 9)) for n in range(4)]) for _ in range(3)))
    assert most == 2


# --- through the real fetcher ---------------------------------------------------------------------------------------


@asynccontextmanager
async def served(pages=None, names=None):
    """A site that has `pages`, and the service's pictures, whose reader reaches it."""
    async with hostile_web() as web:
        web.site.pages.update(pages or {})
        web.names.answers.update(names or {})
        reader = DirectReader(fetcher=web.fetcher())
        try:
            yield web.site, taken_by(reader)
        finally:
            await reader.close()


async def test_a_picture_of_the_web_is_fetched():
    async with served({"/a.png": answer(png(21, 9), "Content-Type: image/png")}) as (site, pictures):
        ((ref, data),) = await pictures.all_of([site.url("/a.png")])
    assert (ref.width, data) == (21, png(21, 9))


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data/", "http://localhost/", "http://10.0.0.1/", "file:///etc/passwd"],
)
async def test_a_redirect_to_the_inside_is_not_followed(target):
    async with served({"/a.png": redirect(target)}) as (site, pictures):
        assert (await refusal(pictures, site.url("/a.png"))).status == 400
        assert site.paths == ["/a.png"]


async def test_a_page_that_says_it_is_a_picture_is_refused():
    async with served({"/a.png": answer(b"<html>", "Content-Type: image/png")}) as (site, pictures):
        assert "not a readable picture" in (await refusal(pictures, site.url("/a.png"))).message


async def test_no_refusal_tells_whether_a_name_stands_for_something_inside():
    inside, nowhere = "wiki.example.org", "gone.example.org"
    async with served(names={inside: [["10.1.2.3"]], nowhere: [OSError("no such name")]}) as (site, pictures):
        told = [(await refusal(pictures, site.url("/a.png", host))).message for host in (inside, nowhere)]
    assert told[0] == told[1] == "Picture 1 could not be fetched: send it as a data URL."


WHOLE = {kind: encoded(kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12))
def test_whatever_bytes_come_they_are_a_picture_or_refused(kind, changes):
    data = bytearray(WHOLE[kind])
    for at, byte in changes:
        data[at % len(data)] = byte
    pictures = taken_by()
    try:
        ((ref, _),) = asyncio.run(pictures.all_of([data_url(bytes(data))]))
    except ApiError as error:
        found = error
    else:
        found = ref.width
    assert isinstance(found, int) or found.code == "invalid_image"
