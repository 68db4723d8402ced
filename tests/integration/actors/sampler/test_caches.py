"""What a real engine tells of its load, and what the siblings of a group share on it."""

import asyncio
import time
from dataclasses import replace

import pytest

from actors.agent.seams import Sampling
from actors.model.renderer import load_renderer
from actors.sampler.engine import Engine
from tests.integration.actors.sampler.conftest import engine_settings

pytestmark = [pytest.mark.timeout(240, func_only=True), pytest.mark.asyncio(loop_scope="session")]

BLOCK = 128  # tokens of a KV block on a CPU: no less is shared


def prompt(renderer, pictures, text="who founded it? " * 16, n_images=2):
    return renderer.open("Image: <image> " * n_images + text, pictures.refs[:n_images])


def generate(engine, segment, n, tokens=8):
    sampling, deadline = Sampling(max_tokens=tokens), time.monotonic() + 60
    return asyncio.gather(*(engine.generate([segment], sampling, deadline=deadline) for _ in range(n)))


async def test_siblings_find_the_prompt_and_the_pictures_of_the_first_in_the_caches(engine, renderer, pictures):
    segment = prompt(renderer, pictures)
    whole_blocks = segment.expanded_length // BLOCK * BLOCK
    assert whole_blocks >= BLOCK
    assert segment.images
    await generate(engine, segment, 1)
    before = engine.load()
    await generate(engine, segment, 7)
    after = engine.load()
    assert after.prefix_asked - before.prefix_asked == 7 * segment.expanded_length
    assert after.prefix_hits - before.prefix_hits == 7 * whole_blocks


async def test_siblings_that_begin_together_share_as_well(engine, renderer, pictures):
    segment = prompt(renderer, pictures, "a prompt that nobody has seen so far, " * 16, n_images=1)
    before = engine.load()
    await generate(engine, segment, 8)
    found = engine.load().prefix_hits - before.prefix_hits
    assert found >= 6 * (segment.expanded_length // BLOCK * BLOCK)


async def test_kv_usage_rises_with_what_runs_and_falls_back(engine, renderer, pictures):
    segment = prompt(renderer, pictures)
    await generate(engine, segment, 1)
    engine.load()
    await generate(engine, segment, 16, tokens=64)
    busy = engine.load()
    assert 0 < busy.kv_used <= 1
    await generate(engine, segment, 1, tokens=2)
    engine.load()
    assert engine.load().kv_used < busy.kv_used


@pytest.mark.slow
async def test_an_engine_with_too_little_cache_tells_that_it_throws_requests_out(model_folder, pictures):
    renderer = load_renderer(model_folder)
    settings = replace(engine_settings("float32"), kv_cache_bytes=1 << 22, max_model_len=1024)
    async with Engine(model_folder, settings, renderer, pictures) as small:
        segment = prompt(renderer, pictures, n_images=0)
        await generate(small, segment, 16, tokens=300)
        load = small.load()
    assert load.kv_used > 0.9
    assert load.preempted > 0


@pytest.mark.slow
async def test_where_the_cache_is_too_small_the_newest_waits_even_for_a_first_turn(model_folder, pictures):
    """By priority vLLM throws out what it may have scheduled in the same step, and keeps what that had not computed."""
    renderer = load_renderer(model_folder)
    settings = replace(engine_settings("float32"), kv_cache_bytes=1 << 22, max_model_len=1024)
    ended: list[str] = []

    async def turn(name, history):
        await small.generate(history, Sampling(0.0, max_tokens=300), deadline=time.monotonic() + 60)
        ended.append(name)

    async with Engine(model_folder, settings, renderer, pictures) as small:
        first = [prompt(renderer, pictures, n_images=0)]
        oldest = asyncio.create_task(turn("the first turn", first))
        while not small.stats().running:
            await asyncio.sleep(0)
        later = [*first, renderer.observe("<information>page</information>", [])]
        await asyncio.gather(oldest, *(turn("a later turn", later) for _ in range(15)))
        assert small.load().preempted > 0
    assert ended[0] == "the first turn"


@pytest.mark.slow
async def test_an_engine_that_is_not_watched_tells_nothing(model_folder, pictures):
    renderer = load_renderer(model_folder)
    settings = replace(engine_settings("float32"), watch_load=False)
    async with Engine(model_folder, settings, renderer, pictures) as unwatched:
        await generate(unwatched, prompt(renderer, pictures), 2)
        assert unwatched.load().kv_used == unwatched.load().prefix_asked == 0
