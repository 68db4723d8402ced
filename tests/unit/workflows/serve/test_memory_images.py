"""Pictures in memory: what a request holds stays, what nobody holds is bounded."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.seams import ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef
from tests.hostile_requests import png
from workflows.serve import memory_images
from workflows.serve.memory_images import MemoryImages


def ref(number):
    return ImageRef(f"{number:064d}", 8, 8)


def kept(images):
    return [number for number in range(20) if images.has(ref(number))]


def filled(n, max_bytes, size=10):
    images = MemoryImages(max_bytes)
    for number in range(n):
        images.keep(ref(number), bytes(size))
    return images


def test_a_picture_that_was_put_can_be_got_by_its_reference():
    images = MemoryImages()
    put = images.put(png(9, 7))
    assert (put.width, put.height) == (9, 7)
    assert images.get(put) == png(9, 7)
    assert images.has(put)


def test_what_is_no_picture_is_refused_and_not_kept():
    images = MemoryImages(max_pixels=50)
    for data in (b"", b"hello", png(8, 8), png()[:40]):
        with pytest.raises(ImageRefused):
            images.put(data)
    assert not images._known


def test_a_picture_that_is_here_already_is_not_decoded_again(monkeypatch):
    images = MemoryImages()
    put = images.put(png())
    monkeypatch.setattr(memory_images, "measure", None)
    assert images.put(png()) == put


def test_a_picture_that_was_never_here_is_missing_by_a_short_name():
    with pytest.raises(ImageMissing, match="image 000000000000 is not held"):
        MemoryImages().get(ref(1))


def test_what_nobody_holds_is_forgotten_from_the_longest_unused_on():
    images = filled(3, max_bytes=30)
    images.get(ref(0))
    images.keep(ref(3), bytes(10))
    assert kept(images) == [0, 2, 3]


def test_a_picture_too_large_to_stay_is_forgotten_at_once_unless_it_is_held():
    assert kept(filled(1, max_bytes=9)) == []
    images = MemoryImages(max_bytes=9)
    with images.holding([ref(0)]):
        images.keep(ref(0), bytes(10))
        assert kept(images) == [0]
    assert kept(images) == []


def test_what_a_request_holds_stays_and_takes_no_room_from_the_others():
    images = filled(2, max_bytes=30)
    with images.holding([ref(0)]) as mine:
        images.hold(mine, ref(1))
        for number in range(2, 6):
            images.keep(ref(number), bytes(10))
        assert kept(images) == [0, 1, 3, 4, 5]
    assert kept(images) == [3, 4, 5]


def test_a_picture_of_two_requests_stays_until_the_second_one_ends():
    images = MemoryImages(max_bytes=0)
    with images.holding([ref(0)]):
        images.keep(ref(0), bytes(10))
        with images.holding([ref(0), ref(0)]):
            pass
        assert kept(images) == [0]
    assert kept(images) == []


def test_a_request_that_fails_lets_go():
    images = MemoryImages(max_bytes=0)

    def request():
        with images.holding([ref(0)]):
            images.keep(ref(0), bytes(10))
            raise RuntimeError("it fails")

    with pytest.raises(RuntimeError, match="it fails"):
        request()
    assert kept(images) == []


steps = st.lists(st.tuples(st.sampled_from(["keep", "get", "open", "hold", "close"]), st.integers(0, 7)), max_size=60)


@given(steps)
def test_whatever_comes_held_pictures_stay_and_loose_ones_are_bounded(steps):
    images, sizes = MemoryImages(max_bytes=25), {number: number + 3 for number in range(8)}
    requests, ever = [], set()
    for step, number in steps:
        if step == "keep":
            images.keep(ref(number), bytes(sizes[number]))
            ever.add(number)
        elif step == "get" and images.has(ref(number)):
            assert len(images.get(ref(number))) == sizes[number]
        elif step == "open":
            holding = images.holding([ref(number)])
            requests.append((holding, holding.__enter__()))
        elif step == "hold" and requests:
            images.hold(requests[-1][1], ref(number))
        elif step == "close" and requests:
            requests.pop(0)[0].__exit__(None, None, None)
        held = Counter(sha256 for _, mine in requests for sha256 in mine.elements())
        loose = [number for number in kept(images) if ref(number).sha256 not in held]
        assert sum(sizes[number] for number in loose) == images._loose <= 25
        assert images._held == held
    while requests:
        requests.pop()[0].__exit__(None, None, None)
    assert not images._held


def test_a_held_picture_survives_any_others():
    images = MemoryImages(max_bytes=25)
    images.keep(ref(0), bytes(10))
    with images.holding([ref(0)]):
        for number in range(1, 20):
            images.keep(ref(number), bytes(20))
            assert images.get(ref(0))


def test_threads_may_put_hold_and_get_at_once():
    images = MemoryImages(max_bytes=2_000)
    pictures = [png(width, width) for width in range(8, 20)]

    def request(number):
        for turn in range(30):
            put = images.put(pictures[(number * 7 + turn) % len(pictures)])
            with images.holding([put]):
                if images.has(put):
                    assert images.get(put)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(request, range(8)))
    assert not images._held
    assert sum(len(data) for _, data in images._known.values()) == images._loose <= 2_000
