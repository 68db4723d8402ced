"""vLLM and the learner agree on every token; weights change under running requests; what is asked to stop stops."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from actors.agent.seams import GenerationFailed, ImageRefused, Sampling
from actors.agent.trajectory import ImageRef, PlacedImage, Segment, SegmentKind
from actors.model.batch import collate
from actors.model.expansion import expand
from actors.model.forward import token_logprobs
from actors.model.load import copy_without_weights
from actors.model.pixels import Pixels
from actors.model.renderer import ChatRenderer
from actors.sampler import vllm_adapter
from actors.sampler.engine import Engine
from actors.weights.build import build_transport
from actors.weights.manifest import TornPublish, verify
from actors.weights.receiver import Receiver
from actors.weights.settings import PublishSettings
from actors.weights.transport import FolderTransport, write_weights
from tests.integration.actors.sampler.conftest import engine_settings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240, func_only=True)]

FOREVER = 60.0  # seconds that no turn here needs


async def play(
    engine: Engine, renderer: ChatRenderer, refs: Sequence[ImageRef], sampling: Sampling, turns: int = 3
) -> list[Segment]:
    """An episode of several turns with two pictures at first and one more with each observation."""
    segments = [renderer.open("Image 1: <image> Image 2: <image> who founded it?", refs[:2])]
    for number in range(turns):
        action = await sample(engine, segments, sampling)
        while renderer.forbidden(action.token_ids):  # a random model may write an image token; an episode ends there
            action = await sample(engine, segments, sampling)
        segments.append(action)
        if number < turns - 1:
            page = f"<information>page {number} <image></information>"
            segments.append(renderer.observe(page, [refs[2 + number]]))
    return segments


async def sample(engine: Engine, segments: Sequence[Segment], sampling: Sampling) -> Segment:
    turn = await engine.generate(segments, sampling, deadline=time.monotonic() + FOREVER)
    return Segment(SegmentKind.ACTION, turn.token_ids, turn.logprobs, turn.spans)


async def some_token(engine: Engine) -> None:
    """Wait until a running turn has sampled at least one token."""
    while not engine.stats().running:
        await asyncio.sleep(0.01)


def learner_logprobs(
    policy, pixels: Pixels, renderer: ChatRenderer, episodes: Sequence[Sequence[Segment]], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """(learner's, sampler's) log-probs of all sampled tokens."""
    sequences = [expand(segments, renderer.image_token) for segments in episodes]
    batch = collate(sequences, pixels, 0, {"behaviour": [sequence.logprobs for sequence in sequences]})
    with torch.no_grad():
        ours = token_logprobs(policy, batch, temperature)
    return ours.numpy(), batch.flat("behaviour").numpy()


def _other_way_round(prompt: Segment) -> tuple[PlacedImage, ...]:
    """The same placeholders with each other's pictures; all pictures here have one size."""
    first, second = prompt.images
    return replace(first, ref=second.ref), replace(second, ref=first.ref)


@pytest.fixture
def doubled(policy, model_folder: Path, tmp_path: Path):
    """A learner one step further: other weights, published as version 1."""
    changed = {name: value.detach() * (1.25 if "proj" in name else 1.0) for name, value in policy.named_parameters()}
    return changed, FolderTransport(tmp_path / "weights", model_folder).send(1, changed.items())


@pytest_asyncio.fixture(loop_scope="session")
async def back_to_start(engine: Engine, model_folder: Path):
    """Whatever a test loads, the next one finds version 0."""
    yield
    if engine.version != 0:
        await engine.update(str(model_folder), 0)


@dataclass(frozen=True)
class Behaviour:
    """What an engine holds, and what it says greedily."""

    checksums: list[dict[str, str]]
    tokens: list[list[int]]
    logprobs: list[list[float]]


async def behaviour(engine: Engine, renderer: ChatRenderer, pictures) -> Behaviour:
    said = []
    for number in range(4):
        prompt = [renderer.open("Image 1: <image> what does it show?", pictures.refs[number : number + 1])]
        said.append(await sample(engine, prompt, Sampling(temperature=0.0, max_tokens=16)))
    tokens, logprobs = [turn.token_ids.tolist() for turn in said], [turn.logprobs.tolist() for turn in said]
    return Behaviour(await engine.weight_checksums(), tokens, logprobs)


@pytest.fixture(scope="module")
def changed(policy) -> dict[str, torch.Tensor]:
    """A learner one step further, its vision tower too."""
    return {name: value.detach() * (1.25 if "proj" in name else 1.0) for name, value in policy.named_parameters()}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fresh(changed, model_folder: Path, renderer, pictures, tmp_path_factory) -> Behaviour:
    """Of an engine that was started with the changed weights."""
    folder = tmp_path_factory.mktemp("fresh")
    copy_without_weights(model_folder, folder)
    write_weights(changed.items(), folder)
    async with Engine(folder, engine_settings("float32"), renderer, pictures) as other:
        return await behaviour(other, renderer, pictures)


@pytest.mark.parametrize("transport", ["shared_memory", "object_store", "storage", "s3"])
async def test_after_a_publish_the_engine_is_as_one_that_was_started_with_those_weights(
    transport, engine, renderer, pictures, changed, fresh, back_to_start, tmp_path, request
):
    address = ""
    if transport == "object_store":
        request.getfixturevalue("ray_cluster")
    elif transport == "storage":
        address = str(tmp_path / "storage")
    elif transport == "s3":
        address = f"{request.getfixturevalue('s3_bucket')}/weights"
    settings = PublishSettings("storage" if address else transport, address, bucket_mib=1)
    sender, receiver = build_transport(settings, tmp_path / "root"), Receiver(tmp_path)
    before = await behaviour(engine, renderer, pictures)  # its caches are full of what the old weights made
    assert before.checksums != fresh.checksums
    assert before.logprobs != fresh.logprobs
    try:
        with receiver.opened(sender.send(1, changed.items())) as folder:
            await engine.update(str(folder), 1)
        after = await behaviour(engine, renderer, pictures)
    finally:
        receiver.close()
        sender.close()
    assert after.checksums == fresh.checksums
    assert after.tokens == fresh.tokens
    for ours, theirs in zip(after.logprobs, fresh.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_learner_and_sampler_agree_on_logprobs_in_fp32(engine, renderer, policy, pixels, pictures, temperature):
    sampling = Sampling(temperature=temperature, max_tokens=24)
    rotated = [pictures.refs[i:] + pictures.refs[:i] for i in range(8)]
    episodes = await asyncio.gather(*(play(engine, renderer, refs, sampling) for refs in rotated))
    ours, theirs = learner_logprobs(policy, pixels, renderer, episodes, temperature)
    assert len(ours) > 200
    assert np.abs(ours - theirs).mean() <= 1e-5
    swapped = [[replace(episode[0], images=_other_way_round(episode[0])), *episode[1:]] for episode in episodes]
    ours, theirs = learner_logprobs(policy, pixels, renderer, swapped, temperature)
    assert np.abs(ours - theirs).mean() > 1e-4  # the measure sees which picture is which


async def test_an_update_lands_inside_running_turns_and_the_engine_is_then_a_freshly_loaded_one(
    engine, renderer, policy, pixels, pictures, doubled, model_folder, back_to_start
):
    weights, ticket = doubled
    before = await engine.weight_checksums()
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]
    story = Sampling(max_tokens=400)
    turns = [asyncio.create_task(sample(engine, segments, story)) for _ in range(4)]
    await some_token(engine)
    await engine.update(ticket.folder, ticket.version)
    assert engine.version == 1
    versions = [[int(span.version) for span in turn.spans] for turn in await asyncio.gather(*turns)]
    assert [0, 1] in versions  # sampled under both; Segment has checked that spans tile the turn
    assert all(spans in ([0], [0, 1], [1]) for spans in versions)

    episode = await play(engine, renderer, pictures.refs, Sampling(max_tokens=24))
    assert {int(span.version) for segment in episode for span in segment.spans} == {1}
    original = {name: value.detach().clone() for name, value in policy.named_parameters()}
    try:
        policy.load_state_dict(weights, strict=False)
        ours, theirs = learner_logprobs(policy, pixels, renderer, [episode], 1.0)
    finally:
        policy.load_state_dict(original, strict=False)
    assert np.abs(ours - theirs).mean() <= 1e-5

    assert await engine.weight_checksums() != before
    await engine.update(str(model_folder), 2)
    assert await engine.weight_checksums() == before  # reloading leaves exactly what loading leaves


async def test_a_turn_that_is_asked_for_while_weights_are_loaded_finds_no_kv_of_the_old_ones(
    engine, renderer, pictures, monkeypatch, model_folder, back_to_start
):
    segments = [renderer.open("Image 1: <image> " + "who founded it? " * 32, pictures.refs[:1])]
    await sample(engine, segments, Sampling(max_tokens=2))  # its blocks are in the cache
    before, turns, load_folder = engine.load(), [], vllm_adapter.load_folder

    async def slow(llm, folder):
        turns.append(asyncio.create_task(sample(engine, segments, Sampling(max_tokens=2))))
        while not engine.stats().waiting:
            await asyncio.sleep(0.01)
        await load_folder(llm, folder)

    monkeypatch.setattr(vllm_adapter, "load_folder", slow)
    await engine.update(str(model_folder), 1)
    assert {int(span.version) for span in (await turns[0]).spans} == {1}
    after = engine.load()
    assert after.prefix_asked - before.prefix_asked == segments[0].expanded_length
    assert after.prefix_hits == before.prefix_hits
    await sample(engine, segments, Sampling(max_tokens=2))
    assert engine.load().prefix_hits > before.prefix_hits  # the same turn does find what was made under the new ones


async def test_tokens_are_stamped_by_us_when_the_engine_does_not(
    engine, renderer, pictures, monkeypatch, model_folder, back_to_start
):
    monkeypatch.setattr(vllm_adapter, "labels_tokens", lambda llm: False)
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]
    turns = [asyncio.create_task(sample(engine, segments, Sampling(max_tokens=400))) for _ in range(4)]
    await some_token(engine)
    await engine.update(str(model_folder), 7)
    assert [0, 7] in [[int(span.version) for span in turn.spans] for turn in await asyncio.gather(*turns)]


async def test_a_torn_publish_is_refused_before_the_engine_sees_it(engine, renderer, pictures, doubled):
    _, ticket = doubled
    weights = Path(ticket.folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TornPublish):
        verify(ticket)
    assert engine.version == 0
    assert (await play(engine, renderer, pictures.refs, Sampling(max_tokens=4), turns=1))[-1].trained


async def test_at_its_deadline_a_turn_is_cut_and_keeps_what_was_sampled(engine, renderer, pictures):
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]
    started = time.monotonic()
    turns = await asyncio.gather(
        *(engine.generate(segments, Sampling(max_tokens=1900), deadline=started + 1.0) for _ in range(4))
    )
    assert time.monotonic() - started < 5
    cut = [turn for turn in turns if turn.stop == "aborted"]
    assert cut
    for turn in cut:
        assert 0 < len(turn.token_ids) == len(turn.logprobs) < 1900
        assert turn.spans[-1].end == len(turn.token_ids)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_a_deadline_in_the_past_costs_nothing(engine, renderer):
    turn = await engine.generate([renderer.open("hi", [])], Sampling(), deadline=time.monotonic() - 1)
    assert (len(turn.token_ids), turn.stop) == (0, "aborted")


async def test_a_cancelled_caller_aborts_its_turn(engine, renderer, pictures):
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]
    turn = asyncio.create_task(sample(engine, segments, Sampling(max_tokens=1900)))
    await some_token(engine)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_a_history_that_fills_the_model_leaves_an_empty_turn(engine, renderer):
    segments = [renderer.open("word " * 3000, [])]
    turn = await engine.generate(segments, Sampling(), deadline=time.monotonic() + FOREVER)
    assert (len(turn.token_ids), turn.stop) == (0, "length")


async def test_a_turn_never_grows_beyond_the_model(engine, renderer):
    per_word = len(renderer.encode("word " * 100)) / 100
    segments = [renderer.open("word " * int(1900 / per_word), [])]
    room = 2048 - segments[0].expanded_length
    turns = await asyncio.gather(
        *(engine.generate(segments, Sampling(max_tokens=5000), deadline=time.monotonic() + FOREVER) for _ in range(3))
    )
    assert all(len(turn.token_ids) == room for turn in turns if turn.stop == "length")
    assert all(turn.token_ids[-1] == renderer.end_of_turn for turn in turns if turn.stop == "end_of_turn")


async def test_more_images_than_the_engine_takes_are_refused(engine, renderer, pictures):
    refs = (pictures.refs * 2)[:9]
    with pytest.raises(ImageRefused, match="images_per_prompt is 8"):
        await sample(engine, [renderer.open("<image>" * 9, refs)], Sampling(max_tokens=2))


async def test_lengths_that_do_not_fit_the_picture_are_found_out(engine, renderer, pictures):
    honest = renderer.open("<image>", pictures.refs[:1])
    wrong = PlacedImage(honest.images[0].offset, pictures.refs[0], honest.images[0].n_tokens + 1)
    with pytest.raises(GenerationFailed, match="other ids"):
        await sample(engine, [Segment(SegmentKind.PROMPT, honest.token_ids, images=(wrong,))], Sampling(max_tokens=2))


async def test_siblings_share_a_picture_and_a_picture_may_come_twice(engine, renderer, policy, pixels, pictures):
    refs = [pictures.refs[0], pictures.refs[0], pictures.refs[1], pictures.refs[0]]
    episodes = await asyncio.gather(*(play(engine, renderer, refs, Sampling(max_tokens=8)) for _ in range(4)))
    ours, theirs = learner_logprobs(policy, pixels, renderer, episodes, 1.0)
    assert np.abs(ours - theirs).mean() <= 1e-5


async def test_a_turn_is_told_while_it_is_sampled_and_ends_as_it_does_untold(engine, renderer, pictures):
    segments, told = [renderer.open("<image> tell a story", pictures.refs[:1])], []
    greedy = Sampling(temperature=0.0, max_tokens=40)
    turn = await engine.generate(segments, greedy, deadline=time.monotonic() + FOREVER, told=told.append)
    silent = await sample(engine, segments, greedy)
    assert len(told) > 1
    assert all(len(one) < len(other) for one, other in itertools.pairwise(told))
    assert all(ids.dtype == np.int32 and ids.tolist() == turn.token_ids[: len(ids)].tolist() for ids in told)
    assert turn.token_ids.tolist() == silent.token_ids.tolist()
    assert turn.logprobs == pytest.approx(silent.logprobs, abs=1e-4)
    assert turn.spans == silent.spans


async def test_where_turns_wait_for_room_the_one_that_was_begun_before_goes_first(engine, renderer, pictures):
    begun: list[str] = []

    def noted(name: str):
        return lambda ids: None if name in begun else begun.append(name)

    prompt = renderer.open("Image 1: <image> who founded it?", pictures.refs[:1])
    action = await sample(engine, [prompt], Sampling(0.0, max_tokens=4))
    later = [prompt, action, renderer.observe("<information>page</information>", [])]
    until = time.monotonic() + FOREVER
    twice_full = [
        asyncio.create_task(engine.generate([prompt], Sampling(max_tokens=32), deadline=until))
        for _ in range(2 * engine_settings("float32").max_num_seqs)
    ]
    await some_token(engine)
    waiting = [
        asyncio.create_task(engine.generate(history, Sampling(max_tokens=2), deadline=until, told=noted(name)))
        for name, history in [("a first turn", [prompt]), ("a later turn", later)]
    ]
    await asyncio.gather(*twice_full, *waiting)
    assert begun == ["a later turn", "a first turn"]


async def test_who_raises_while_told_leaves_no_request_running(engine, renderer, pictures):
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]

    def refuses(ids: np.ndarray) -> None:
        if len(ids) > 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await engine.generate(segments, Sampling(max_tokens=1900), deadline=time.monotonic() + FOREVER, told=refuses)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    assert (await sample(engine, segments, Sampling(max_tokens=2))).trained  # and it is none the worse for it


async def test_weights_that_break_off_while_loading_take_the_engine_out_of_service(engine, renderer, pictures):
    """Last of all that share the engine, in this file and in those before it: it is not usable afterwards."""
    segments = [renderer.open("<image> tell a long story", pictures.refs[:1])]
    turn = asyncio.create_task(sample(engine, segments, Sampling(max_tokens=1900)))
    await some_token(engine)
    with pytest.raises(GenerationFailed, match="loading weights 9 failed"):
        await engine.update("/nowhere", 9)
    with pytest.raises(GenerationFailed, match="loading weights 9 failed"):
        await turn
    assert (engine.version, engine.healthy()) == (0, False)
    with pytest.raises(GenerationFailed):
        await sample(engine, segments, Sampling(max_tokens=2))
