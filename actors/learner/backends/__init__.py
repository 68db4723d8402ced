"""Two engines under one Protocol: plain torch for debugging and one rank, DeepSpeed ZeRO 0-3 for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.learner.settings import BackendSettings

if TYPE_CHECKING:
    from actors.learner.backends.protocol import LearnerBackend
    from actors.learner.backends.ranks import Ranks


def build_backend(model: Any, settings: BackendSettings, ranks: Ranks) -> LearnerBackend:
    """The configured engine around a Hugging Face model. The process group must stand (`ranks.join`)."""
    suit_machine(model, settings)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers now lets every embedding's output ask for gradients, which only the reentrant kind needs: they
        # would flow through a frozen tower, whose layers would all be computed again
        model.disable_input_require_grads()
    if settings.compile:
        # shapes differ from batch to batch, so one dynamic graph instead of one for each
        model.model.language_model.compile(dynamic=True)
    if settings.kind == "plain":
        from actors.learner.backends.plain import PlainBackend

        return PlainBackend(model, settings, ranks)
    from actors.learner.backends.deepspeed import DeepSpeedBackend

    return DeepSpeedBackend(model, settings, ranks)


def suit_machine(model: Any, settings: BackendSettings) -> None:
    """The forms of its layers that this precision wants on this machine; the policy's and its reference's must be
    one."""
    from actors.learner.backends.attention import use_fp32_attention
    from actors.learner.backends.lean_layers import norm_by_formula, read_patches_by_product
    from actors.learner.backends.ranks import training_device

    read_patches_by_product(model)
    if settings.precision == "bf16" and training_device().type == "cpu":
        use_fp32_attention(model)
        if not settings.compile:  # which makes one operation of a norm by itself
            norm_by_formula(model)
