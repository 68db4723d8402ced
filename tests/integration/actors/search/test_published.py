"""Pictures in a real object store on loopback, under addresses that anybody can open for a while."""

from __future__ import annotations

import io
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from PIL import Image

from actors.search.providers.published import PublishedImages
from actors.search.providers.serper import SerperLens
from actors.search.seams import ErrorKind, ImageQuery, ProviderError
from cluster.storage import Folder
from tests.unit.actors.search.providers.documented import KEY, Seen, serper_row, serper_rows
from tests.unit.actors.search.providers.loopback import loopback


def picture(form: str = "PNG") -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(encoded, format=form)
    return encoded.getvalue()


async def opened(url: str) -> tuple[str, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return response.headers["Content-Type"], await response.read()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
async def test_a_published_picture_can_be_opened_by_its_address_until_it_expires(s3_bucket, form):
    store = PublishedImages(f"{s3_bucket}/crops", seconds=120)
    url = await store.publish(picture(form))
    assert await opened(url) == (f"image/{form.lower()}", picture(form))
    signed = parse_qs(urlsplit(url).query)
    assert signed["X-Amz-Expires"] == ["120"]
    assert signed["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]


async def test_the_same_picture_is_stored_once(s3_bucket):
    store = PublishedImages(f"{s3_bucket}/crops")
    urls = [await store.publish(picture()) for _ in range(2)]
    assert len({urlsplit(url).path for url in urls}) == 1
    assert len(Folder(f"{s3_bucket}/crops").files()) == 1


async def test_a_store_that_is_not_there_and_what_is_no_picture_are_provider_errors(s3_bucket):
    with pytest.raises(ProviderError, match="the store of pictures") as caught:
        await PublishedImages("s3://no-such-bucket-here/x").publish(picture())
    assert caught.value.kind is ErrorKind.BAD_KEY
    with pytest.raises(ProviderError) as caught:
        await PublishedImages(s3_bucket).publish(b"<html>")
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert Folder(s3_bucket).files() == []


async def test_a_store_that_cannot_be_reached_is_a_passing_failure(monkeypatch, s3_server):
    monkeypatch.setattr("cluster.drives.ATTEMPTS", 1)
    with pytest.raises(ProviderError) as caught:
        await PublishedImages("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http").publish(picture())
    assert caught.value.kind is ErrorKind.TRANSIENT


async def test_lens_is_given_an_address_that_it_can_open(s3_bucket, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    given: list[Seen] = []

    def lens(seen: Seen):
        given.append(seen)
        return serper_rows([serper_row(url="https://a.example", title="A red square")])

    async with loopback(lens) as server:
        adapter = SerperLens(store=f"{s3_bucket}/crops", base_url=server.url)
        hits = await adapter.search(ImageQuery(picture(), 3))
        await adapter.close()
    assert [hit.title for hit in hits] == ["A red square"]
    assert (await opened(given[0].json["url"]))[1] == picture()
