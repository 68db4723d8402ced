"""The vision tower with all windows of all pictures in one call, against transformers' own loop over windows."""

from __future__ import annotations

import pytest
import torch

from actors.learner.backends.attention import use_fp32_attention
from actors.model.tiny import TinySize, build_model, build_tokenizer


@pytest.mark.parametrize(
    "grids",
    [
        [(1, 8, 8)] * 3,  # one window each
        [(1, 8, 8), (1, 4, 6), (1, 4, 6), (1, 8, 8)],  # windows of different sizes
        [(1, 12, 20)],  # several windows, those at the border smaller
    ],
)
def test_pictures_of_any_sizes_are_seen_as_transformers_sees_them(grids):
    torch.manual_seed(0)
    model = build_model(build_tokenizer(["a red star"], 320), TinySize(), seed=0)
    grid = torch.tensor(grids)
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14)
    with torch.no_grad():
        expected = torch.cat(list(model.model.get_image_features(pixels, grid).pooler_output))
        use_fp32_attention(model)
        seen = torch.cat(list(model.model.get_image_features(pixels, grid).pooler_output))
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
