"""The forward pass that pre-training, SFT and GRPO share: log-probabilities of the trained tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from actors.model.batch import TokenBatch


def token_logprobs(model: Any, batch: TokenBatch, temperature: float = 1.0) -> torch.Tensor:
    """log p of each trained token given what stands before it: float32[n_trained], row-major in `batch.loss_mask`.

    Logits are computed at trained positions only. `mm_token_type_ids` marks image tokens, so that they get their
    three-dimensional M-RoPE positions (without it transformers counts them as text and parity with vLLM is lost).
    """
    import torch

    inner = getattr(model, "module", model)
    image_token = inner.config.image_token_id
    vision: dict[str, Any] = {}
    if batch.pixel_values is not None:
        vision = {"image_grid_thw": batch.image_grid_thw}
        if batch.image_index is None:
            vision["pixel_values"] = batch.pixel_values.to(inner.dtype)
        else:
            vision["mm_encoder_outputs"] = {"image": _shared_features(inner, batch)}
    hidden = inner.model(
        input_ids=batch.input_ids,
        attention_mask=None,  # padding stands on the right, where causal attention does not look
        mm_token_type_ids=(batch.input_ids == image_token).to(torch.int32),
        use_cache=False,
        **vision,
    ).last_hidden_state
    targets = batch.loss_mask[:, 1:]
    logits = inner.lm_head(hidden[:, :-1][targets]).float()
    if temperature != 1.0:
        logits = logits / temperature
    chosen = batch.input_ids[:, 1:][targets]
    return -torch.nn.functional.cross_entropy(logits, chosen, reduction="none")


def _shared_features(inner: Any, batch: TokenBatch) -> Any:
    """The vision tower's output for every appearance of a picture, each distinct picture being read once."""
    import torch

    assert batch.image_index is not None
    assert batch.image_grid_thw is not None
    assert batch.pixel_values is not None
    grids = torch.zeros_like(batch.image_grid_thw[: int(batch.image_index.max()) + 1])
    grids[batch.image_index] = batch.image_grid_thw
    features = inner.model.get_image_features(batch.pixel_values.to(inner.dtype), grids, return_dict=True)
    order = batch.image_index.tolist()
    features.pooler_output = [features.pooler_output[i] for i in order]
    if getattr(features, "deepstack_features", None):  # Qwen3-VL shows what deeper layers see to the first text layers
        features.deepstack_features = [[layer[i] for i in order] for layer in features.deepstack_features]
    return features
