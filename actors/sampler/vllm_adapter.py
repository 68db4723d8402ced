"""What differs between vLLM 0.26 and 0.32, and what must be set before vLLM is imported. Nothing else knows.

0.32 labels each sampled token with the weight version it was sampled under; 0.26 does not, so there `Engine`
stamps tokens as they arrive. Arguments that a version does not know are left out when they only save work and
refused when leaving them out would change what is sampled.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from actors.agent.trajectory import VersionSpan, WeightVersion
from actors.sampler.settings import EngineSettings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_CPU_KV_CACHE_BYTES = 256 << 20
_ONLY_SAVES_WORK = {
    "skip_mm_profiling",
    "mm_processor_cache_gb",
    "disable_log_stats",
    "enable_log_requests",
    "use_tqdm_on_load",
}


def prepare_environment(settings: EngineSettings) -> None:
    """Set what vLLM and its spawned processes read from the environment. Call before vLLM is imported."""
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # other bindings cost a warning per step and a tenth of the speed
        OMP_NUM_THREADS=str(settings.omp_threads),  # Ray sets 1 for an actor without CPUs, or its CPUs
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL=settings.log_level,
        VLLM_LOGGING_STREAM="ext://sys.stderr",  # standard output is for answers: an engine that is closed may complain
    )


def start_engine(model_path: str, settings: EngineSettings) -> AsyncLLM:
    """Start vLLM's engine processes for a local model folder. Blocks for 10 to 20 s at the embedded scale."""
    prepare_environment(settings)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    known = {item.name for item in fields(AsyncEngineArgs)}
    wanted = _engine_arguments(model_path, settings)
    missing = wanted.keys() - known - _ONLY_SAVES_WORK
    if missing:
        raise RuntimeError(f"this vLLM does not know the engine arguments {', '.join(sorted(missing))}")
    arguments = AsyncEngineArgs(**{name: value for name, value in wanted.items() if name in known})
    if not settings.watch_load:
        return AsyncLLM.from_engine_args(arguments)
    from actors.sampler.load_watch import LoadWatch, WatchedLLM

    return WatchedLLM.from_engine_args(arguments, stat_loggers=[LoadWatch])


async def stop_listening(llm: AsyncLLM) -> None:
    """End what listens to the engine's processes, before they end: else it takes that for a crash, and logs one.

    Where turns are still running it stays, for their failure comes from it.
    """
    listener = getattr(llm, "output_handler", None)
    if listener is not None and not llm.output_processor.request_states:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


def _engine_arguments(model_path: str, settings: EngineSettings) -> dict[str, Any]:
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu and settings.honour_request_seeds:
        # gpu_model_runner rewinds the generator of a partly prefilled request by `set_offset`, which a CPU
        # generator does not have: the worker dies with "CPU Generator does not use offset".
        raise ValueError("honour_request_seeds cannot be on with vLLM's CPU build")
    return {
        "model": model_path,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "scheduling_policy": "priority",  # `Engine` says which turns come first; among equals the oldest
        "scheduler_cls": f"{__name__}.{scheduler.__name__}",
        "tensor_parallel_size": settings.tensor_parallel_size,
        "kv_cache_memory_bytes": settings.kv_cache_bytes or (_CPU_KV_CACHE_BYTES if on_cpu else None),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": settings.prefix_caching,
        "limit_mm_per_prompt": {"image": settings.images_per_prompt, "video": 0},
        "mm_processor_cache_gb": settings.image_cache_gb,
        "skip_mm_profiling": True,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled, temperature included
        "generation_config": "vllm",  # the folder's sampling defaults and stop tokens must not creep in
        "disable_log_stats": not settings.watch_load,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        **_transfer_arguments(settings),
        **(_in_one_process() if on_cpu and settings.tensor_parallel_size == 1 else {}),
    }


def scheduler(vllm_config: Any, **more: Any) -> Any:
    """vLLM's own scheduler, which takes in by priority and throws out the newest: its engine process calls this.

    By priority it would throw out, when the KV cache is full, a request that it may have scheduled in the same step,
    and keep what that one was about to compute as if it were: its blocks in the prefix cache and its pictures in the
    encoder's (vLLM 0.32, https://github.com/vllm-project/vllm/pull/43569). The newest is never scheduled before.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.request_queue import SchedulingPolicy
    from vllm.v1.core.sched.scheduler import Scheduler

    made = (AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler)(vllm_config, **more)
    made.policy = SchedulingPolicy.FCFS  # read from here on where requests are thrown out, and only there
    return made


def _in_one_process() -> dict[str, Any]:
    """The model in the engine's own process. On CPU vLLM would give it one beside, and the two wait for each other by
    spinning, on cores that a small machine does not have; it wants that for binding threads, which is off here.

    As a class: the name "uni" is what vLLM overrides.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return {"distributed_executor_backend": UniProcExecutor}


def _transfer_arguments(settings: EngineSettings) -> dict[str, Any]:
    if not settings.nccl_updates:
        return {}
    from vllm.config import WeightTransferConfig

    return {"weight_transfer_config": WeightTransferConfig(backend="nccl")}


def labels_tokens(llm: Any) -> bool:
    """Whether this vLLM labels sampled tokens with weight versions by itself."""
    return hasattr(llm, "update_weight_version")


async def pause(llm: Any, *, clear_cache: bool) -> None:
    """Freeze all requests where they are; when this returns the engine makes no step.

    vLLM's own call goes on to sleep for 20 ms, so that what was sampled before arrives first. Who needs that are
    tokens that are stamped as they arrive; where the engine labels them, every request would wait for nothing.
    """
    if clear_cache or not labels_tokens(llm):
        await llm.pause_generation(mode="keep", clear_cache=clear_cache)
    else:
        await llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)


async def load_folder(llm: Any, folder: str) -> None:
    """Have all workers of a paused engine load safetensors files."""
    await llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})


async def join_transfer(llm: Any, init_info: dict[str, Any]) -> None:
    """Have all workers enter a learner's NCCL group, and leave the one they are in."""
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    await llm.shutdown_weight_transfer_engine()
    await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))


async def receive_transfer(llm: Any, update_info: dict[str, Any]) -> None:
    """Have all workers of a paused engine load what the learner broadcasts. After a failure they are half-loaded."""
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    await llm.start_weight_update()
    await llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))
    await llm.finish_weight_update()


async def set_weight_version(llm: Any, version: int) -> None:
    """Label the tokens that follow, where the engine can."""
    if labels_tokens(llm):
        await llm.update_weight_version(str(version))


@dataclass
class SpanLedger:
    """Stamps tokens with the version that was live when they arrived."""

    _spans: list[VersionSpan] = field(default_factory=list)

    def reached(self, n_tokens: int, version: WeightVersion) -> None:
        """The first `n_tokens` of the turn exist now; those not seen before were sampled under `version`."""
        start = self._spans[-1].end if self._spans else 0
        if n_tokens <= start:
            return
        if self._spans and self._spans[-1].version == version:
            start = self._spans.pop().start
        self._spans.append(VersionSpan(version, start, n_tokens))

    def spans(self) -> tuple[VersionSpan, ...]:
        return tuple(self._spans)


def engine_spans(completion: Any) -> tuple[VersionSpan, ...]:
    """The engine's own labels of a finished completion."""
    return tuple(
        VersionSpan(WeightVersion(int(span.version)), span.start, span.end)
        for span in completion.weight_versions or ()
        if span.end > span.start
    )
