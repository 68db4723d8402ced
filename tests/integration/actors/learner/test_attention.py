"""Layers in this project's form, against transformers' own: the vision tower's windows, and the gradients of all."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from actors.learner.backends.attention import use_fp32_attention
from actors.learner.backends.lean_layers import norm_by_formula, read_patches_by_product
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from actors.model.tiny import QWEN3, TinySize, build_model, build_tokenizer

FAMILIES = {size.family: size for size in (TinySize(), QWEN3)}


def model_of(size: TinySize):
    return build_model(build_tokenizer(["a red star"], 320), size, seed=0)


@pytest.mark.parametrize(
    "grids",
    [
        [(1, 8, 8)] * 3,  # one window each
        [(1, 8, 8), (1, 4, 6), (1, 4, 6), (1, 8, 8)],  # windows of different sizes
        [(1, 12, 20)],  # several windows, those at the border smaller
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_any_sizes_are_seen_as_transformers_sees_them(family, grids):
    torch.manual_seed(0)
    model = model_of(FAMILIES[family])
    grid = torch.tensor(grids)
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * FAMILIES[family].patch ** 2)
    with torch.no_grad():
        expected = torch.cat(list(model.model.get_image_features(pixels, grid).pooler_output))
        use_fp32_attention(model)
        seen = torch.cat(list(model.model.get_image_features(pixels, grid).pooler_output))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def seeing_batch(model, size: TinySize) -> TokenBatch:
    """Two rows of different lengths, each with a picture of its own size; padded."""
    config, grid = model.config, torch.tensor([(1, 8, 8), (1, 4, 6)])
    ids, mask = torch.full((2, 40), 3), torch.zeros(2, 40, dtype=torch.bool)
    for row, (tokens, length) in enumerate(zip((16, 6), (40, 25), strict=True)):
        ids[row, :length] = torch.randint(20, 300, (length,))
        ids[row, 2 : 4 + tokens] = config.image_token_id
        ids[row, 2], ids[row, 3 + tokens] = config.vision_start_token_id, config.vision_end_token_id
        mask[row, length - 10 : length] = True
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * size.patch**2)
    return TokenBatch(ids, mask, pixels, grid)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_forms_together_give_the_log_probs_and_the_gradients_of_transformers(family):
    torch.manual_seed(0)
    size = FAMILIES[family]
    plain = model_of(size)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "norm" in name or name.endswith("bias"):  # made as ones and zeros, which would hide what they do
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = deepcopy(plain)
    read_patches_by_product(ours)
    use_fp32_attention(ours)
    norm_by_formula(ours)
    batch = seeing_batch(plain, size)
    expected, found = (token_logprobs(model, batch) for model in (plain, ours))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected.sum().backward()
    found.sum().backward()
    for (name, one), other in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert float((other.grad - one.grad).norm()) <= 1e-4 * float(one.grad.norm()) + 1e-4, name


def test_a_mask_that_this_attention_would_not_heed_is_refused():
    model = model_of(TinySize())
    use_fp32_attention(model)
    layer: Any = model.model.language_model.layers[0].self_attn
    with pytest.raises(ValueError, match="no other mask"):
        layer(torch.zeros(1, 4, 128), position_embeddings=(), attention_mask=torch.zeros(1, 1, 4, 4))
