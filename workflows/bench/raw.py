"""The bare side: vLLM's AsyncLLM in a plain process, with nothing around it but a place per request in flight.

It gets the sampler's engine arguments, threads and niceness (Ray's workers have one of their own), the pictures
decoded beforehand and named by content, and sampling parameters that differ from the sampler's in one thing only:
a turn ends at the length that was sampled, not at the end-of-turn token. (With no stop token, `min_tokens` would bind
nothing and cost a logits processor, which would flatter the rollout.)
"""

from __future__ import annotations

import asyncio
import io
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors.agent.seams import ImageStore, Sampling
from actors.sampler.settings import EngineSettings
from workflows.bench.replay import Request, pictures_of

CLOSE_S = 30.0  # for an engine to stop; after that its process is killed


@dataclass(frozen=True)
class Replayed:
    """What a replay did; `ended` are (time, sampled tokens) of requests, `full_until` when places began to be idle."""

    began: float
    seconds: float
    full_until: float
    ended: list[tuple[float, int]]


class RawEngine:
    """The bare engine's process, as the bench sees it. Use `async with`."""

    def __init__(self, model_path: str, engine: EngineSettings, images: ImageStore, niceness: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, model_path, engine, images, niceness))
        self._process.start()
        far.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    async def __aenter__(self) -> RawEngine:
        await self._answer()
        return self

    async def replay(self, requests: Sequence[Request], sampling: Sampling, concurrency: int) -> Replayed:
        """Caches are emptied and pictures decoded before the clock starts. Raise what went wrong there."""
        self._pipe.send((list(requests), sampling, concurrency))
        return await self._answer()

    async def __aexit__(self, *_: object) -> None:
        if self._process.is_alive():
            with suppress(OSError):  # it is ending already
                self._pipe.send(None)
        await asyncio.to_thread(self._process.join, CLOSE_S)
        if self._process.is_alive():
            self._process.kill()

    async def _answer(self) -> Any:
        try:
            answer = await asyncio.to_thread(self._pipe.recv)
        except EOFError:
            raise RuntimeError("the bare engine's process died") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _serve(pipe: Connection, model_path: str, engine: EngineSettings, images: ImageStore, niceness: int) -> None:
    os.nice(niceness - os.nice(0))
    log = Path(tempfile.gettempdir()) / f"mmsearch-bench-{os.getpid()}.log"
    with log.open("wb") as said:  # what vLLM says does not belong among the bench's own lines
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        _run(_answer_requests(pipe, model_path, engine, images))
    except (EOFError, KeyboardInterrupt):
        pass  # the bench is gone
    except Exception as error:  # told to who waits for it
        pipe.send(RuntimeError(f"the bare engine failed: {error!r}; see {log}"))
        return
    log.unlink()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop where there is one, as Ray's actors and vLLM's own server do."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def _answer_requests(pipe: Connection, model_path: str, engine: EngineSettings, images: ImageStore) -> None:
    from actors.sampler.orphans import OrphanGuard
    from actors.sampler.vllm_adapter import start_engine

    guard = OrphanGuard()
    with guard.marked():
        llm: Any = start_engine(model_path, engine)
    try:
        pipe.send("ready")
        while (work := await asyncio.to_thread(pipe.recv)) is not None:
            pipe.send(await _replay(llm, images, *work))
    finally:
        llm.shutdown()
        guard.dismiss()


_passes = itertools.count()


async def _replay(
    llm: Any, images: ImageStore, requests: Sequence[Request], sampling: Sampling, concurrency: int
) -> Replayed:
    pictures = {ref: _decoded(images.get(ref)) for ref in pictures_of(requests)}
    prompts = [_prompt(request, pictures) for request in requests]
    number = next(_passes)
    queue = iter(list(zip(prompts, (_parameters(sampling, one.sampled) for one in requests), strict=True)))
    ended: list[tuple[float, int]] = []
    full_until = 0.0
    ids = itertools.count()

    async def place() -> None:
        nonlocal full_until
        for prompt, parameters in queue:
            tokens = 0
            async for output in llm.generate(prompt, parameters, f"raw-{number}-{next(ids)}"):
                tokens = len(output.outputs[0].token_ids)
            ended.append((time.monotonic(), tokens))
        full_until = full_until or time.monotonic()

    await forget(llm)
    began = time.monotonic()
    await asyncio.gather(*(place() for _ in range(concurrency)))
    return Replayed(began, time.monotonic() - began, full_until, ended)


async def forget(llm: Any) -> None:
    """Empty the prefix cache and the caches of pictures of an idle vLLM engine."""
    await llm.reset_prefix_cache()
    await llm.reset_mm_cache()
    await llm.reset_encoder_cache()


def _decoded(data: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def _prompt(request: Request, pictures: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_token_ids.tolist()}
    if request.images:
        prompt["multi_modal_data"] = {"image": [pictures[ref] for ref in request.images]}
        prompt["multi_modal_uuids"] = {"image": [ref.sha256 for ref in request.images]}
    return prompt


def _parameters(sampling: Sampling, n: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=n,
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
