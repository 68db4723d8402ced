import contextlib
import gzip
import itertools
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.fetch.decoding import BodyTooLong, BoundedBody
from actors.search.seams import ProviderError

FAR = 10**9
COMPRESS = {
    "": lambda data: data,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


def read(encoding, chunks, max_bytes=FAR, max_body_bytes=FAR):
    body = BoundedBody(encoding, max_bytes, max_body_bytes)
    for chunk in chunks:
        body.feed(chunk)
    return body.end()


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.sampled_from(sorted(COMPRESS)), st.binary(max_size=500), st.lists(st.integers(0, 600), max_size=6))
def test_a_body_is_the_same_however_it_arrives(encoding, data, places):
    assert read(encoding, cut(COMPRESS[encoding](data), places)) == data


@given(st.sampled_from(sorted(COMPRESS)), st.binary(max_size=500), st.integers(0, 500))
def test_a_body_is_read_up_to_its_bound_and_not_one_byte_further(encoding, data, bound):
    travelling = [COMPRESS[encoding](data)]
    if len(data) <= bound:
        assert read(encoding, travelling, max_body_bytes=bound) == data
        return
    with pytest.raises(BodyTooLong) as told:
        read(encoding, travelling, max_body_bytes=bound)
    assert told.value.kept == data[:bound]


@given(st.sampled_from(["gzip", "deflate"]), st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_either_decompress_or_are_refused(encoding, chunks):
    with contextlib.suppress(ProviderError):  # nothing else may come out
        assert len(read(encoding, chunks, max_body_bytes=1000)) <= 1000


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_costs_no_more_memory_than_the_bound(encoding):
    bomb = COMPRESS[encoding](bytes(10 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLong):
            read(encoding, [bomb], max_body_bytes=100_000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_empty_body_of_any_encoding_is_empty():
    assert read("gzip", []) == b""
    assert read("deflate", [b""]) == b""


def test_bytes_that_travel_are_bounded_as_well():
    with pytest.raises(BodyTooLong):
        read("gzip", [gzip.compress(b"x"), bytes(1000)], max_bytes=500)
