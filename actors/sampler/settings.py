"""How a sampling engine is set up. Importing this pulls in neither torch, vLLM nor Ray."""

from __future__ import annotations

from dataclasses import dataclass, field

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EngineSettings:
    """One vLLM engine. Defaults are the embedded scale's; a GPU run's YAML overrides sizes."""

    dtype: str = "bfloat16"
    # float32 | bfloat16 | float16
    max_model_len: int = field(default=2048, metadata={"ge": 1})
    # tokens of a whole episode, images expanded; follows from the protocol's limits
    max_num_seqs: int = field(default=128, metadata={"ge": 1})
    # sequences decoded together
    max_num_batched_tokens: int = field(default=4096, metadata={"ge": 1})
    # tokens per engine step, prefill included
    images_per_prompt: int = field(default=8, metadata={"ge": 0})
    # pictures in one episode at most, thumbnails and crops included; what tools bring beyond is not shown
    kv_cache_bytes: int = field(default=0, metadata={"ge": 0})
    # KV cache; 0: on a GPU what `gpu_memory_utilization` leaves, on a CPU 256 MiB
    gpu_memory_utilization: float = field(default=0.85, metadata={"gt": 0, "le": 1})
    # share of a GPU's memory, when `kv_cache_bytes` is 0
    tensor_parallel_size: int = field(default=1, metadata={"ge": 1})
    # GPUs that share one engine
    enforce_eager: bool = True
    # no torch.compile and no CUDA graphs: starts fast; a long GPU run turns this off
    prefix_caching: bool = True
    # siblings share their prompt's KV blocks; blocks are salted anew with each weight update
    clear_cache_on_update: bool = False
    # True recomputes running requests' KV under new weights; False keeps it (faster, off-policy mix)
    image_cache_gb: float = field(default=0.25, metadata={"ge": 0})
    # processed pixel values kept in the engine's front end, GB
    decoded_mib: int = field(default=256, metadata={"ge": 0})
    # MiB of decoded pictures kept before processing; a photo of 12 megapixels takes 46
    omp_threads: int = field(default=1, metadata={"ge": 1})
    # CPU threads of the engine
    nccl_updates: bool = False
    # be ready for weights from the learner's GPU: with learner.publish.transport=nccl, on GPUs alone
    update_timeout_s: float = field(default=120.0, metadata={"gt": 0})
    # a weight update that takes longer breaks the engine
    abort_grace_s: float = field(default=10.0, metadata={"gt": 0})
    # how long an engine may take to answer an abort before it counts as failed
    answer_timeout_s: float = field(default=30.0, metadata={"gt": 0})
    # an engine that does not answer between two steps for so long hangs, and is replaced
    watch_load: bool = True
    # have the engine's core tell after every step how full its KV cache is; admission and concurrency go by it
    seed: int = field(default=0, metadata={"ge": 0})
    # of the engine
    honour_request_seeds: bool = False
    # pass `Sampling.seed` on; not on a CPU, where vLLM dies on a seeded request whose prefill is split
    log_level: str = "ERROR"
    # vLLM's; WARNING adds lines about every layer at each weight update

    def check(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; accepted: {', '.join(_DTYPES)}")
