"""Thumbnails by address: those that come are there, those that do not keep nobody."""

import asyncio

from actors.search import thumbnails
from actors.search.seams import ErrorKind, ImageHit, ProviderError
from actors.search.thumbnails import Thumbnails


class Reader:
    """A reader of pictures by what their addresses say."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def fetch_image(self, url):
        self.asked.append(url)
        if "gone" in url:
            raise ProviderError(ErrorKind.BAD_REQUEST, "404")
        if "slow" in url:
            await asyncio.Event().wait()
        return url.encode()

    async def close(self):
        pass


def hit(name, thumbnail=None):
    return ImageHit(
        name, f"https://e.example/{name}", "", thumbnail=thumbnail, thumbnail_url=f"https://t.example/{name}"
    )


async def test_thumbnails_are_fetched_where_there_is_only_an_address():
    reader = Reader()
    hits = [hit("a"), hit("b", b"bytes"), ImageHit("c", "https://e.example/c", "")]
    found = await Thumbnails(reader).fetched(hits)
    assert [one.thumbnail for one in found] == [b"https://t.example/a", b"bytes", None]
    assert reader.asked == ["https://t.example/a"]


async def test_one_that_is_gone_and_one_that_never_comes_cost_no_hit(monkeypatch):
    monkeypatch.setattr(thumbnails, "WITHIN_S", 0.02)
    found = await Thumbnails(Reader()).fetched([hit("gone"), hit("slow"), hit("a")])
    assert [one.title for one in found] == ["gone", "slow", "a"]
    assert [one.thumbnail for one in found] == [None, None, b"https://t.example/a"]


async def test_a_picture_inside_our_own_network_is_never_fetched():
    one = ImageHit("inside", "https://e.example/", "", thumbnail_url="http://169.254.169.254/latest/meta-data")
    real = Thumbnails()
    assert (await real.fetched([one]))[0].thumbnail is None
    await real.close()
