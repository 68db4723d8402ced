"""A sampler's GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.sampler.settings import EngineSettings
from cluster.errors import UserError
from workflows.capacity.memory import GIB
from workflows.capacity.sampler_memory import kv_bytes_per_token, sampler_memory

ENGINE = EngineSettings(max_num_seqs=128, max_num_batched_tokens=16384, gpu_memory_utilization=0.85)


def plan(shape, engine=ENGINE, gpu=80 * GIB, longest=12288, on_gpu=True):
    reserve = 2 * GIB if on_gpu else 0
    return sampler_memory(shape, engine, longest=longest, expected=6144, capacity=gpu, reserve=reserve, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("name", "parts", "expected"),
    [
        ("qwen2.5-vl-7b", 1, 2 * 28 * 4 * 128 * 2),
        ("qwen2.5-vl-7b", 4, 2 * 28 * 1 * 128 * 2),
        ("qwen3-vl-8b", 1, 2 * 36 * 8 * 128 * 2),
        ("qwen2.5-vl-3b", 4, 2 * 36 * 1 * 128 * 2),  # 2 key heads over 4 GPUs: each is held twice
    ],
)
def test_bytes_of_a_tokens_keys_and_values(name, parts, expected, real):
    assert kv_bytes_per_token(real(name), parts, 2) == expected


def test_the_cache_gets_what_the_share_leaves_and_holds_whole_episodes(real):
    memory, kv = plan(real("qwen2.5-vl-7b"))
    counted = sum(memory.bytes_of(name) for name in ("weights", "a step", "KV cache", "reserve"))
    assert counted == int(80 * GIB * 0.85)
    assert memory.missing == 0
    assert kv.tokens == memory.bytes_of("KV cache") // 57_344
    assert (kv.episodes_longest, kv.episodes_expected) == (kv.tokens // 12288, kv.tokens // 6144)


def test_weights_are_divided_over_the_gpus_of_a_sampler(real):
    one, four = (plan(real("qwen2.5-vl-7b"), replace(ENGINE, tensor_parallel_size=n))[0] for n in (1, 4))
    assert one.bytes_of("weights") == 2 * 8_292_166_656
    assert four.bytes_of("weights") == 2 * 8_292_166_656 // 4


def test_pictures_beyond_the_rest_of_the_gpu_are_taken_from_the_cache(real):
    memory, _ = plan(real("qwen2.5-vl-7b"), replace(ENGINE, gpu_memory_utilization=1.0))
    assert memory.missing == 0
    assert memory.total == 80 * GIB
    text_alone, _ = plan(real("qwen2.5-vl-7b"), replace(ENGINE, images_per_prompt=0))
    assert text_alone.bytes_of("pictures") == 0


def test_one_episode_must_fit_and_what_is_missing_is_told(real):
    memory, kv = plan(real("qwen2.5-vl-7b"), gpu=18 * GIB)
    assert kv.tokens == 12288
    assert memory.missing == memory.total - 18 * GIB > 0


def test_a_cache_of_a_given_size_is_taken_as_given(real):
    memory, kv = plan(real("qwen2.5-vl-7b"), replace(ENGINE, kv_cache_bytes=4 * GIB))
    assert (memory.bytes_of("KV cache"), kv.tokens) == (4 * GIB, 4 * GIB // 57_344)


def test_on_a_cpu_the_cache_is_the_engines_default(shape):
    memory, kv = plan(shape, EngineSettings(), on_gpu=False, longest=100)
    assert memory.bytes_of("KV cache") == 256 << 20
    assert kv.bytes_per_token == 2 * 3 * 2 * 2 * 2


def test_heads_must_divide_over_the_gpus(real):
    with pytest.raises(UserError, match=r"tensor_parallel_size is 3, and Qwen.*28 heads with 4 key heads"):
        plan(real("Qwen2.5-VL-7B-Instruct"), replace(ENGINE, tensor_parallel_size=3))
    with pytest.raises(UserError, match="tensor_parallel_size is 8"):
        plan(real("qwen2.5-vl-7b"), replace(ENGINE, tensor_parallel_size=8))  # 28 heads over 8 GPUs
