"""An engine that is closed while it loads weights says so to who waits for them."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.agent.seams import GenerationFailed
from actors.sampler import vllm_adapter
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings


class LoadsUntilShutDown:
    """What an engine asks of vLLM during an update; loading ends when the processes do, with an error."""

    errored = False

    def __init__(self) -> None:
        self.engine_core, self.output_processor = self, SimpleNamespace(request_states={})
        self.loading, self.down = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def pause_scheduler_async(self, mode, clear_cache):
        return None

    async def collective_rpc(self, method, kwargs):
        self.loading.set()
        await self.down.wait()
        raise ConnectionError("the engine's core has gone")

    async def reset_encoder_cache(self):
        return None

    async def update_weight_version(self, version):
        return None

    async def abort(self, requests, internal):
        return None

    async def resume_generation(self):
        raise ConnectionError("the engine's core has gone")

    def shutdown(self):
        self._loop.call_soon_threadsafe(self.down.set)


async def test_an_update_during_which_the_engine_is_closed_ends_with_that_reason(monkeypatch):
    llm = LoadsUntilShutDown()
    monkeypatch.setattr(vllm_adapter, "start_engine", lambda *_: llm)
    tokens, images = SimpleNamespace(image_token=1, end_of_turn=2), SimpleNamespace()
    async with Engine("/model", EngineSettings(), tokens, images) as engine:
        update = asyncio.create_task(engine.update("/weights", 1))
        await llm.loading.wait()
        await engine.close()
        with pytest.raises(GenerationFailed, match="the engine was closed"):
            await update
    assert not engine.healthy()
