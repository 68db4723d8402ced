"""How a sampling engine is set up. Importing this pulls in neither torch, vLLM nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EngineSettings:
    """One vLLM engine. Defaults are the embedded scale's; a GPU run's YAML overrides sizes."""

    dtype: str = "bfloat16"
    # float32 | bfloat16 | float16
    max_model_len: int = 2048
    # tokens of a whole episode, images expanded; follows from the protocol's limits
    max_num_seqs: int = 128
    # sequences decoded together
    max_num_batched_tokens: int = 4096
    # tokens per engine step, prefill included
    images_per_prompt: int = 8
    # pictures in one episode at most, thumbnails included
    kv_cache_bytes: int = 0
    # KV cache; 0: on a GPU what `gpu_memory_utilization` leaves, on a CPU 256 MiB
    gpu_memory_utilization: float = 0.85
    # share of a GPU's memory, when `kv_cache_bytes` is 0
    tensor_parallel_size: int = 1
    # GPUs that share one engine
    enforce_eager: bool = True
    # no torch.compile and no CUDA graphs: starts fast; a long GPU run turns this off
    prefix_caching: bool = True
    # siblings share their prompt's KV blocks; blocks are salted with the weight version
    clear_cache_on_update: bool = False
    # True recomputes running requests' KV under new weights; False keeps it (faster, off-policy mix)
    image_cache_gb: float = 0.25
    # processed pixel values kept in the engine's front end, GB
    decoded_images: int = 128
    # pictures kept decoded before processing
    omp_threads: int = 1
    # CPU threads of the engine's worker
    update_timeout_s: float = 120.0
    # a weight update that takes longer breaks the engine
    abort_grace_s: float = 10.0
    # how long an engine may take to answer an abort before it counts as failed
    seed: int = 0
    # of the engine
    honour_request_seeds: bool = False
    # pass `Sampling.seed` on; not on a CPU, where vLLM dies on a seeded request whose prefill is split
    log_level: str = "ERROR"
    # vLLM's; WARNING adds lines about every layer at each weight update

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; accepted: {', '.join(_DTYPES)}")
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.images_per_prompt < 0 or self.omp_threads < 1 or self.kv_cache_bytes < 0:
            raise ValueError("images_per_prompt and kv_cache_bytes cannot be negative, omp_threads at least 1")
