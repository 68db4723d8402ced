"""Pictures are decoded once for all who ask, kept by their bytes, and whose fault a failure is stays told."""

import asyncio
import errno
import gc
import hashlib
import io
import threading
from collections import Counter

import pytest
from PIL import Image

from actors.agent.seams import GenerationFailed, ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef
from actors.sampler.pictures import Pictures
from cluster.drives import S3Failed, S3Forbidden

SIDE = 10
ONE = SIDE * SIDE * 4  # bytes of one picture in memory


class Store:
    """An ImageStore that counts what it is asked, and answers when its gate is open."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def put(self, data: bytes) -> ImageRef:
        ref = ImageRef(hashlib.sha256(data).hexdigest(), SIDE, SIDE)
        self.data[ref.sha256] = data
        return ref

    def picture(self, colour: str, side: int = SIDE) -> ImageRef:
        encoded = io.BytesIO()
        Image.new("RGB", (side, side), colour).save(encoded, "PNG")
        return self.put(encoded.getvalue())

    def get(self, ref: ImageRef) -> bytes:
        self.asked[ref.sha256] += 1
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if ref.sha256 not in self.data:
            raise ImageMissing(ref.sha256)
        return self.data[ref.sha256]


@pytest.fixture
def store():
    return Store()


async def asking(pictures, store, ref, n):
    """`n` tasks that wait for one picture behind a gate."""
    store.gate.clear()
    tasks = [asyncio.create_task(pictures.get(ref)) for _ in range(n)]
    while not store.asked[ref.sha256]:
        await asyncio.sleep(0)
    return tasks


async def test_siblings_that_ask_at_once_share_one_decoding_and_none_takes_it_from_the_others(store):
    ref, pictures = store.picture("red"), Pictures(store, 10 * ONE)
    first, second, third = await asking(pictures, store, ref, 3)
    first.cancel()
    second.cancel()
    await asyncio.wait([first, second])
    store.gate.set()
    picture = await third
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert first.cancelled()
    assert second.cancelled()
    assert await pictures.get(ref) is picture
    assert store.asked.total() == 1


@pytest.mark.parametrize("failure", [S3Failed("S3 failed"), S3Forbidden("no"), OSError(errno.ENOSPC, "disk full")])
async def test_a_store_that_fails_is_no_fault_of_the_data_and_the_failure_is_not_kept(store, failure):
    ref, pictures = store.picture("red"), Pictures(store, 10 * ONE)
    store.failure = failure
    tasks = await asking(pictures, store, ref, 2)
    store.gate.set()
    for task in tasks:
        with pytest.raises(GenerationFailed, match="storage does not give image"):
            await task
    store.failure = None
    assert (await pictures.get(ref)).size == (SIDE, SIDE)


async def test_a_picture_that_is_missing_or_torn_is_the_data_s_fault(store):
    pictures = Pictures(store, 10 * ONE)
    with pytest.raises(ImageMissing):
        await pictures.get(ImageRef("0" * 64, SIDE, SIDE))
    whole = store.data[store.picture("red").sha256]
    for torn in (b"no picture at all", whole[: len(whole) // 2], b""):
        with pytest.raises(ImageRefused, match="does not decode"):
            await pictures.get(store.put(torn))


async def test_a_failure_that_nobody_waits_for_any_more_is_not_complained_about(store):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    ref, pictures = store.picture("red"), Pictures(store, 10 * ONE)
    store.failure = OSError("down")
    (task,) = await asking(pictures, store, ref, 1)
    task.cancel()
    await asyncio.wait([task])
    store.gate.set()
    while len(asyncio.all_tasks()) > 1:  # besides this one
        await asyncio.sleep(0.01)
    del task
    gc.collect()
    assert not complaints


async def test_what_is_kept_is_bounded_by_its_bytes_and_the_least_recently_used_goes_first(store):
    pictures = Pictures(store, 2 * ONE)
    red, green, blue = (store.picture(colour) for colour in ("red", "green", "blue"))
    for ref in (red, green, red, blue):  # green has waited longest when blue wants its room
        await pictures.get(ref)
    for ref in (red, blue, green):
        await pictures.get(ref)
    assert [store.asked[ref.sha256] for ref in (red, green, blue)] == [1, 2, 1]


async def test_a_picture_larger_than_all_the_room_takes_nobody_s_place(store):
    pictures = Pictures(store, 2 * ONE)
    small, large = store.picture("red"), store.picture("red", 2 * SIDE)
    for ref in (small, large, small, large):
        await pictures.get(ref)
    assert [store.asked[ref.sha256] for ref in (small, large)] == [1, 2]
