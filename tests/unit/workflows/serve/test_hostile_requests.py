"""Every body that a stranger may send is refused with a status of theirs, and by nothing but an `ApiError`."""

import json
import time

import pytest

from actors.search.fetch.fetcher import GuardedFetcher
from actors.search.fetch.reader import DirectReader
from tests import hostile_requests
from workflows.serve.chat import asked, parsed
from workflows.serve.errors import ApiError
from workflows.serve.memory_images import MemoryImages
from workflows.serve.pictures import RequestPictures
from workflows.serve.settings import RequestSettings

MODEL = "embedded"
POINTS_INSIDE = {"127.0.0.1.nip.io": ["127.0.0.1"]}
ENOUGH_S = 10.0  # on a machine that is busy; each takes well under one second otherwise


async def names(name):
    if name not in POINTS_INSIDE:
        raise OSError(f"the tests have no {name}")
    return POINTS_INSIDE[name]


async def judged(body, settings=None):
    """What the service does with a body before any agent sees it."""
    settings = settings or RequestSettings()
    reader = DirectReader(fetcher=GuardedFetcher(resolve=names))
    try:
        question = asked(parsed(body), MODEL, settings)
        return question, await RequestPictures(settings, MemoryImages(), reader).all_of(question.pictures)
    finally:
        await reader.close()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("hostile", hostile_requests.BODIES, ids=lambda hostile: hostile.name)
async def test_a_hostile_body_is_refused_at_once_in_one_sentence(hostile):
    body = hostile.body(MODEL)
    began = time.monotonic()
    with pytest.raises(ApiError) as refused:
        await judged(body)
    assert time.monotonic() - began < ENOUGH_S
    error = refused.value
    assert error.status in hostile.statuses
    assert 10 < len(error.message) <= 500
    assert error.message.isprintable()
    json.dumps(error.body, ensure_ascii=False).encode()  # a client can be told it


async def test_the_bodies_are_refused_for_what_they_say_and_not_for_their_frame():
    question, pictures = await judged(
        hostile_requests.showing(hostile_requests.data_url(hostile_requests.png()))(MODEL)
    )
    assert question.text == "Who is this?"
    assert (pictures[0][0].width, pictures[0][0].height) == (8, 8)


def test_there_are_many_and_each_has_its_name():
    everything = (*hostile_requests.BODIES, *hostile_requests.SERVED, *hostile_requests.KEYS, *hostile_requests.RAW)
    assert len({one.name for one in everything}) == len(everything) >= 45
