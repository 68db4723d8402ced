"""A policy as a running vLLM engine: continues token sequences, and takes new weights while it does.

Always true:
- what goes in is unexpanded (one placeholder per image), and what vLLM expanded it to is compared with
  `actors.model.expansion` on every turn: learner and sampler see the same sequence or the turn fails;
- every sampled token carries its log-probability under the sampled distribution and its weight version;
- prefix-cache blocks are salted anew with every change of weights, from the moment that the engine stands still: what
  is asked from then on finds no KV of old weights. What ran or waited before goes on with its own, unless
  `clear_cache_on_update` has it computed again;
- a failed weight update leaves no half-loaded engine in service: it is broken, and says so to everyone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from actors.agent.seams import Clock, Generation, GenerationFailed, ImageRefused, ImageStore, Sampling
from actors.agent.trajectory import FloatArray, ImageRef, IntArray, Segment, VersionSpan, WeightVersion
from actors.model.expansion import expanded_ids, images_of
from actors.sampler import vllm_adapter
from actors.sampler.orphans import OrphanGuard
from actors.sampler.pictures import Pictures
from actors.sampler.settings import EngineSettings

if TYPE_CHECKING:
    from actors.sampler.load_watch import EngineLoad

_log = logging.getLogger(__name__)

_STOPS = {"stop": "end_of_turn", "length": "length", "abort": "aborted"}  # vLLM's finish reasons


class TurnTokens(Protocol):
    """The two ids that an engine must know (`actors.model.renderer.ChatRenderer` has them)."""

    image_token: int
    end_of_turn: int


@dataclass(frozen=True)
class EngineStats:
    """Counters since start and a view of now."""

    version: int
    healthy: bool
    running: int  # requests that have sampled a token
    waiting: int  # requests queued or in prefill
    turns: int  # finished
    sampled_tokens: int
    prompt_tokens: int  # expanded
    updates: int
    last_update_s: float


class Engine:
    """`agent.seams.Generator` on a vLLM engine of its own. Use as `async with Engine(...) as engine`."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        settings: EngineSettings,
        tokens: TurnTokens,
        images: ImageStore,
        *,
        version: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        settings.check()
        self._model_path, self._settings, self._tokens = str(model_path), settings, tokens
        self._pictures = Pictures(images, settings.decoded_mib << 20)
        self._version = WeightVersion(version)
        self._clock = clock
        self._llm: Any = None
        self._guard: OrphanGuard | None = None
        self._broken = ""  # why this engine must not be used any more
        self._update_lock = asyncio.Lock()
        self._loads = 0
        self._salt = 0  # no version: that number may come back with other weights after a resume
        self._last_update_s = 0.0
        self._turn_ids = itertools.count()
        self._turns = self._sampled = self._prompted = 0

    async def start(self) -> None:
        """Start vLLM and label its tokens with the first version."""
        self._guard = OrphanGuard()
        try:
            with self._guard.marked():
                self._llm = vllm_adapter.start_engine(self._model_path, self._settings)
        except BaseException:
            self._guard.dismiss()
            raise
        await vllm_adapter.set_weight_version(self._llm, self._version)

    async def close(self) -> None:
        """Stop the engine's processes. Turns still running fail."""
        llm, self._llm, self._broken = self._llm, None, self._broken or "the engine was closed"
        if llm is not None:
            await vllm_adapter.stop_listening(llm)
            await asyncio.to_thread(llm.shutdown)
        if self._guard is not None:
            self._guard.dismiss()

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def version(self) -> WeightVersion:
        """The version of the weights that sample now."""
        return self._version

    def healthy(self) -> bool:
        """Whether turns can be served: started, alive, and not half-loaded."""
        return self._llm is not None and not self._broken and not self._llm.errored

    async def answers(self) -> bool:
        """`healthy`, and the engine's core takes a question between two of its steps: it does not hang.

        While weights are loaded it need not answer; that has a deadline of its own.
        """
        if not self.healthy() or self._update_lock.locked():
            return self.healthy()
        return await _answered(self._llm.is_sleeping(), self._settings.answer_timeout_s)

    def stats(self) -> EngineStats:
        states = () if self._llm is None else tuple(self._llm.output_processor.request_states.values())
        waiting = sum(state.is_prefilling for state in states)
        return EngineStats(
            version=int(self._version),
            healthy=self.healthy(),
            running=len(states) - waiting,
            waiting=waiting,
            turns=self._turns,
            sampled_tokens=self._sampled,
            prompt_tokens=self._prompted,
            updates=self._loads,
            last_update_s=self._last_update_s,
        )

    def load(self) -> EngineLoad:
        """How full it is; see actors/sampler/load_watch.py."""
        from actors.sampler.load_watch import load_of

        return load_of(self._llm)

    async def generate(
        self,
        segments: Sequence[Segment],
        sampling: Sampling,
        *,
        deadline: float,
        request_id: str | None = None,
        told: Callable[[IntArray], None] | None = None,
    ) -> Generation:
        """Sample one turn. At `deadline` the turn is cut (`stop="aborted"`); a cancelled caller aborts it.

        A history that leaves no room in `max_model_len` gives an empty turn with `stop="length"`. Where turns wait for
        room in the engine, those with the longest history come first: what has begun ends, before more begins.
        `told` gets int32[n], the ids sampled so far, whenever there are more of them; what it raises ends the turn.
        Raise `GenerationFailed` when the engine or the images' storage failed, `ImageRefused` for more images than it
        takes or one that does not decode, `ExpansionError` when images and placeholders differ.
        """
        expanded = expanded_ids(segments, self._tokens.image_token)
        room = self._settings.max_model_len - len(expanded)
        if room < 1 or self._clock() >= deadline:
            return _empty("length" if room < 1 else "aborted")
        prompt = await self._prompt(segments, images_of(segments))
        self._raise_if_unusable()
        turn = request_id or f"turn-{next(self._turn_ids)}"
        try:
            async with self._aborted_at(deadline, turn):
                parameters = self._parameters(sampling, room, grows=told is not None)
                generation = await self._sample(prompt, parameters, turn, -len(segments), expanded, told)
        except TimeoutError as error:
            raise GenerationFailed(f"the engine did not end {turn} after its deadline") from error
        self._turns += 1
        self._sampled += len(generation.token_ids)
        self._prompted += len(expanded)
        return generation

    async def update(self, folder: str, version: int) -> None:
        """Load the weights in `folder` (Hugging Face safetensors) under running requests, which then go on.

        Raise `GenerationFailed` when loading failed: the engine is then broken and must be replaced. Whether
        the folder is complete is checked by the caller (`actors.weights.receiver`) before this is called.
        """
        await self._change(version, lambda llm: vllm_adapter.load_folder(llm, folder))

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Enter the group of a learner that sends from GPU to GPU. Raise what vLLM raises."""
        self._raise_if_unusable()
        await vllm_adapter.join_transfer(self._llm, init_info)

    async def receive_transfer(self, update_info: dict[str, Any], version: int) -> None:
        """As `update`, with weights that come from the learner's GPU while this runs."""
        await self._change(version, lambda llm: vllm_adapter.receive_transfer(llm, update_info))

    async def _change(self, version: int, loading: Callable[[Any], Awaitable[None]]) -> None:
        """Pause, load, label, resume."""
        async with self._update_lock:
            self._raise_if_unusable()
            llm = self._llm  # `close` may take it away meanwhile
            started = time.perf_counter()
            try:
                async with asyncio.timeout(self._settings.update_timeout_s):
                    await vllm_adapter.pause(llm, clear_cache=self._settings.clear_cache_on_update)
                    self._salt += 1  # now: what is asked while weights are loaded runs under the new ones alone
                    # Asked for at once: the engine's core answers in this order, and nobody else asks it to step.
                    # Loading clears the workers' encoder cache; the scheduler must be told, or the engine dies with
                    # "Encoder cache miss".
                    await asyncio.gather(
                        loading(llm),
                        llm.reset_encoder_cache(),
                        vllm_adapter.set_weight_version(llm, version),
                    )
                    self._version = WeightVersion(version)
                    self._loads += 1
            except BaseException as error:
                await self._break(llm, f"loading weights {version} failed: {error!r}")
                if not isinstance(error, Exception):
                    raise
                raise GenerationFailed(self._broken) from error
            finally:
                resumed = await _answered(llm.resume_generation(), self._settings.abort_grace_s)
            if not resumed:
                await self._break(llm, f"the engine did not resume after loading weights {version}")
                raise GenerationFailed(self._broken)
            self._last_update_s = time.perf_counter() - started

    async def weight_checksums(self) -> list[dict[str, str]]:
        """SHA-256 of each parameter as it lies in each worker."""
        return await self._llm.compute_weight_checksums()

    async def _prompt(self, segments: Sequence[Segment], images: tuple[ImageRef, ...]) -> dict[str, Any]:
        ids = np.concatenate([segment.token_ids for segment in segments]).tolist()
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if images:
            if len(images) > self._settings.images_per_prompt:
                raise ImageRefused(f"{len(images)} images, but images_per_prompt is {self._settings.images_per_prompt}")
            prompt["multi_modal_data"] = {"image": [await self._pictures.get(ref) for ref in images]}
            prompt["multi_modal_uuids"] = {"image": [ref.sha256 for ref in images]}
        prompt["cache_salt"] = str(self._salt)
        return prompt

    def _parameters(self, sampling: Sampling, room: int, *, grows: bool) -> Any:
        """`grows`: outputs are wanted while the turn is sampled, not only when it has ended."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        grows = grows or not vllm_adapter.labels_tokens(self._llm)  # what we label ourselves is labelled as it arrives
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),
            seed=sampling.seed if self._settings.honour_request_seeds else None,
            stop_token_ids=[self._tokens.end_of_turn],
            ignore_eos=True,  # a turn ends at the end-of-turn token alone
            logprobs=0,  # of the sampled token
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if grows else RequestOutputKind.FINAL_ONLY,
        )

    async def _sample(
        self,
        prompt: dict[str, Any],
        parameters: Any,
        turn: str,
        priority: int,
        expanded: IntArray,
        told: Callable[[IntArray], None] | None,
    ) -> Generation:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        ledger = vllm_adapter.SpanLedger()
        output, known = None, 0
        try:
            asked = self._llm.generate(prompt, parameters, turn, priority=priority)
            async with aclosing(asked) as outputs:  # `told` may raise
                async for output in outputs:
                    sampled = output.outputs[0].token_ids
                    ledger.reached(len(sampled), self._version)
                    if told is not None and len(sampled) > known:
                        told(np.array(sampled, dtype=np.int32))
                    known = len(sampled)
        except EngineDeadError as error:
            self._broken = self._broken or "the engine died"
            raise GenerationFailed(self._broken) from error
        except EngineGenerateError as error:
            raise GenerationFailed(f"the engine failed to sample {turn}: {error.__cause__!r}") from error
        self._raise_if_unusable()  # what was sampled while an update broke is not worth keeping
        if output is None or output.outputs[0].finish_reason not in _STOPS:
            raise GenerationFailed(f"the engine ended {turn} without a result")
        if output.prompt_token_ids != expanded.tolist():
            raise GenerationFailed(f"vLLM expanded the history of {turn} to other ids than the learner will")
        completion = output.outputs[0]
        labelled = vllm_adapter.labels_tokens(self._llm)
        return _generation(completion, vllm_adapter.engine_spans(completion) if labelled else ledger.spans())

    @asynccontextmanager
    async def _aborted_at(self, deadline: float, turn: str) -> AsyncIterator[None]:
        """Around a turn: it is aborted at the deadline; one that goes on regardless ends in TimeoutError.

        Most turns end long before, so what aborts is made only when its time has come.
        """
        left = deadline - self._clock()
        aborts: list[asyncio.Task[None]] = []
        begin = asyncio.get_running_loop().call_later(
            max(0.0, left), lambda: aborts.append(asyncio.create_task(self._abort(turn)))
        )
        try:
            async with asyncio.timeout(left + self._settings.abort_grace_s):
                yield
        finally:
            begin.cancel()
            for task in aborts:
                task.cancel()
            await asyncio.gather(*aborts, return_exceptions=True)

    async def _abort(self, turn: str) -> None:
        """Until the turn has ended: it may not have reached the engine."""
        while self._llm is not None:
            await self._llm.abort(turn)
            await asyncio.sleep(0.05)

    async def _break(self, llm: Any, reason: str) -> None:
        """Take the engine out of service: its weights are in doubt, so running turns are aborted and fail.

        One that is out of service already, closed or dead, keeps the reason that came first.
        """
        self._broken = self._broken or reason
        _log.error("%s", reason)
        abort = llm.abort(list(llm.output_processor.request_states), internal=True)
        await _answered(abort, self._settings.abort_grace_s)

    def _raise_if_unusable(self) -> None:
        if not self.healthy():
            raise GenerationFailed(self._broken or "the engine is not running")


def _empty(stop: str) -> Generation:
    return Generation(np.zeros(0, np.int32), np.zeros(0, np.float32), (), stop)


def _generation(completion: Any, spans: tuple[VersionSpan, ...]) -> Generation:
    ids = np.array(completion.token_ids, dtype=np.int32)
    return Generation(ids, _sampled_logprobs(completion.logprobs), spans, _STOPS[completion.finish_reason])


def _sampled_logprobs(flat: Any) -> FloatArray:
    """float32[n] from vLLM's flat layout, in which the sampled token comes first at each position."""
    if not flat:
        return np.zeros(0, dtype=np.float32)
    return np.array(flat.logprobs, dtype=np.float32)[np.array(flat.start_indices)]


async def _answered(work: Awaitable[Any], seconds: float) -> bool:
    """Await an engine for a bounded time. That a dead one does not answer is logged and returned, not raised."""
    try:
        await asyncio.wait_for(work, seconds)
    except Exception as error:  # the engine's own errors are of many types
        _log.warning("the engine did not answer: %r", error)
        return False
    return True
