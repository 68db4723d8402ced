"""LoRA, frozen parts and activation checkpointing on a tiny real Qwen2.5-VL, under every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.learner.adapters import add_adapters
from actors.learner.backends import build_backend
from actors.learner.backends.ranks import Ranks, join
from actors.learner.batch import to_micro_batches, train_sequences
from actors.learner.objective import PolicyObjective
from actors.learner.parts import freeze_parts, part_parameters, vision_tower
from actors.learner.settings import BackendSettings, LoraSettings, ObjectiveSettings, OptimizerSettings
from actors.model.forward import token_logprobs
from actors.model.load import copy_without_weights, load_policy
from actors.model.pixels import Pixels
from cluster.errors import UserError

FP32 = BackendSettings(kind="plain", precision="fp32", optimizer=OptimizerSettings(lr=1e-2, grad_clip=1.0))
EVERY = [
    pytest.param(replace(FP32, kind=kind, zero_stage=stage), id=f"{kind}{stage}")
    for kind, stage in [("plain", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
]
SOME = [EVERY[0], EVERY[3], EVERY[4]]
LORA = LoraSettings(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return join(Ranks())


@pytest.fixture(scope="module")
def batches(make_episode, image_token, tiny_folder, images) -> list:
    groups = [[make_episode(4 * g + i, reward=float(i % 2), turns=1 + (g + i) % 3) for i in range(4)] for g in range(2)]
    found, _ = train_sequences(groups, advantage="mean_std", image_token_id=image_token, max_length=500, version=0)
    made = to_micro_batches(found, Pixels.load(tiny_folder, images), 0, 250)
    assert len(made) > 1
    return made


@pytest.fixture(scope="module")
def base(tiny_folder) -> dict[str, torch.Tensor]:
    return dict(load_policy(tiny_folder).named_parameters())


@pytest.fixture(scope="module")
def build(tiny_folder, ranks) -> Callable:
    def make(settings: BackendSettings, lora: LoraSettings | None = None, freeze: tuple[str, ...] = ()):
        model = load_policy(tiny_folder, "float32" if settings.precision == "fp32" else "bfloat16")
        freeze_parts(model, freeze)
        if lora is not None:
            add_adapters(model, lora)
        return build_backend(model, settings, ranks)

    return make


def step(backend, batches) -> None:
    assert backend.train_batch(batches, PolicyObjective(ObjectiveSettings())).skipped == ""


def weights_of(backend) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in backend.named_weights()}


def moved(backend, base) -> set[str]:
    return {name for name, tensor in weights_of(backend).items() if not torch.equal(tensor, base[name])}


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> float:
    """Relative L2 difference of two updates."""
    apart = sum(float((one[n] - other[n]).square().sum()) for n in base) ** 0.5
    return apart / sum(float((other[n] - base[n].detach()).square().sum()) for n in base) ** 0.5


# --- LoRA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EVERY)
def test_lora_moves_every_layer_of_the_language_model_and_nothing_else(settings, build, batches, base):
    backend = build(settings, LORA)
    assert identical(weights_of(backend), base)
    step(backend, batches)
    step(backend, batches)
    layers = "model.language_model.layers."
    expected = {n for n in base if n.startswith(layers) and n.endswith("proj.weight")}
    assert len(expected) == 14
    assert moved(backend, base) == expected


@pytest.mark.parametrize("settings", EVERY[1:])
def test_lora_under_deepspeed_makes_the_update_that_plain_torch_makes(settings, build, batches, base):
    deep, plain = build(settings, LORA), build(FP32, LORA)
    for backend in (deep, plain):
        step(backend, batches)
        step(backend, batches)
    assert difference(weights_of(deep), weights_of(plain), base) <= 1e-3


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[4]])
def test_lora_is_published_in_the_base_models_names_shapes_and_dtype(settings, build, batches, tiny_folder):
    backend = build(replace(settings, precision="bf16"), LORA)
    step(backend, batches)
    expected = {n: (p.shape, p.dtype) for n, p in load_policy(tiny_folder, "bfloat16").named_parameters()}
    assert {n: (t.shape, t.dtype) for n, t in weights_of(backend).items()} == expected
    assert [n for n, _ in backend.named_weights()] == list(expected)


@pytest.mark.parametrize("settings", SOME)
def test_an_export_of_lora_is_a_plain_model_that_scores_as_the_learner_does(
    settings, build, batches, tiny_folder, tmp_path
):
    backend = build(settings, LORA)
    step(backend, batches)
    step(backend, batches)
    copy_without_weights(tiny_folder, tmp_path)
    backend.export(tmp_path)
    assert not list(tmp_path.glob("*adapter*"))
    plain = load_policy(tmp_path)
    assert identical(dict(plain.named_parameters()), weights_of(backend))
    untrained = load_policy(tiny_folder)
    for batch, scored in zip(batches, backend.logprobs(batches), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(scored, token_logprobs(plain, batch), rtol=1e-5, atol=1e-5)
            assert (scored - token_logprobs(untrained, batch)).abs().max() > 1e-2


@pytest.mark.parametrize("settings", EVERY)
def test_publishing_and_scoring_the_base_leave_the_training_as_it_was_to_the_bit(settings, build, batches, tiny_folder):
    watched, alone = build(settings, LORA), build(settings, LORA)
    untrained = load_policy(tiny_folder)
    for _ in range(3):
        weights_of(watched)
        reference = watched.logprobs(batches, adapters=False)
        for batch, scored in zip(batches, reference, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(scored, token_logprobs(untrained, batch), rtol=1e-6, atol=1e-6)
        step(watched, batches)
        step(alone, batches)
    assert identical(weights_of(watched), weights_of(alone))


@pytest.mark.parametrize("settings", EVERY)
def test_a_checkpoint_of_lora_holds_the_adapters_alone_and_continues_exactly(settings, build, batches, tmp_path):
    first = build(settings, LORA)
    step(first, batches)
    first.save(tmp_path)
    step(first, batches)
    second = build(settings, LORA)
    second.load(tmp_path)
    assert second.steps == 1
    step(second, batches)
    assert identical(weights_of(second), weights_of(first))
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert written < sum(4 * tensor.numel() for tensor in weights_of(first).values())
    with pytest.raises(UserError, match="cannot be loaded"):
        build(settings).load(tmp_path)


def test_dropout_is_in_training_passes_alone(build, batches, tmp_path, tiny_folder):
    backend = build(FP32, replace(LORA, dropout=0.5))
    step(backend, batches)
    step(backend, batches)
    (one,), (other,) = backend.logprobs(batches[:1]), backend.logprobs(batches[:1])
    assert torch.equal(one, other)
    torch.manual_seed(1)
    first = token_logprobs(backend.model, batches[0])
    assert not torch.equal(first, token_logprobs(backend.model, batches[0]))


def test_lora_begins_alike_whatever_the_random_state(tiny_folder):
    def first_values(state: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        model = load_policy(tiny_folder)
        add_adapters(model, LORA)
        assert torch.random.initial_seed() == state
        return dict(model.named_parameters())

    assert identical(first_values(1), first_values(2))


def test_lora_may_name_its_targets_and_the_vision_tower_is_none(tiny_folder, build, batches, base):
    backend = build(FP32, replace(LORA, targets=["q_proj", "gate_proj"]))
    step(backend, batches)
    step(backend, batches)
    assert {name.split(".", 4)[4] for name in moved(backend, base)} == {
        "self_attn.q_proj.weight",
        "mlp.gate_proj.weight",
    }
    assert all("language_model" in name for name in moved(backend, base))
    with pytest.raises(UserError, match=r"qkv.*are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        add_adapters(load_policy(tiny_folder), replace(LORA, targets=["qkv"]))


# --- frozen parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SOME)
@pytest.mark.parametrize("freeze", [("vision",), ("projector",), ("vision", "projector")], ids="+".join)
def test_a_frozen_part_stays_and_everything_else_moves(settings, freeze, build, batches, base):
    backend = build(settings, freeze=freeze)
    step(backend, batches)
    visual = {n for n in base if n.startswith("model.visual.")}
    merger = {n for n in visual if ".merger." in n}
    still = (visual - merger if "vision" in freeze else set()) | (merger if "projector" in freeze else set())
    # a token or key bias that has no effect gets no gradient, frozen or not
    assert still <= base.keys() - moved(backend, base)
    assert visual - still <= moved(backend, base) | {n for n in visual if n.endswith("bias")}
    assert any("language_model" in n for n in moved(backend, base))


@pytest.mark.parametrize("settings", SOME)
def test_a_checkpoint_with_frozen_parts_continues_exactly(settings, build, batches, tmp_path):
    first = build(settings, freeze=("vision",))
    step(first, batches)
    first.save(tmp_path)
    step(first, batches)
    second = build(settings, freeze=("vision",))
    second.load(tmp_path)
    step(second, batches)
    assert identical(weights_of(second), weights_of(first))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_no_gradient_flows_through_a_frozen_tower_and_nothing_of_it_is_kept(checkpointing, build, batches):
    settings = replace(FP32, activation_checkpointing=checkpointing)
    whole, none = (build(settings, freeze=freeze).model for freeze in ((), ("vision", "projector")))
    only_tower = build(settings, freeze=("vision",)).model
    with_picture = next(batch for batch in batches if batch.pixel_values is not None)

    def seen(model) -> tuple[bool, bool, int]:
        """Whether the last block and the tower's result have gradients, and the bytes kept for backward."""
        last: list[torch.Tensor] = []
        tower: Any = vision_tower(model)
        tower.blocks[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
        with Saved() as saved:
            found = model.model.get_image_features(
                with_picture.pixel_values, with_picture.image_grid_thw[: len(with_picture.pixel_values) // 64]
            )
        result = torch.cat(list(found.pooler_output))
        return last[0].requires_grad, result.requires_grad, saved.total

    assert seen(none) == (False, False, 0)
    tower = seen(only_tower)
    assert tower[:2] == (False, True)
    assert 0 < tower[2] < seen(whole)[2]
    assert seen(whole)[:2] == (True, True)


def test_a_model_without_such_a_part_is_refused_by_name(tiny_folder):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = Qwen2Config(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UserError, match="Qwen2ForCausalLM has no vision tower; its modules are embed_tokens, layers"):
        freeze_parts(Qwen2ForCausalLM(small), ["vision"])
    bare = load_policy(tiny_folder)
    tower: Any = vision_tower(bare)
    tower.tail = tower.merger
    del tower.merger
    with pytest.raises(
        UserError, match=r"has no projector: none of merger, .*patch_embed, rotary_pos_emb, blocks, tail"
    ):
        freeze_parts(bare, ["projector"])


def test_vision_and_projector_are_the_whole_tower(tiny_folder):
    model = load_policy(tiny_folder)
    parts = [*part_parameters(model, "vision"), *part_parameters(model, "projector")]
    assert sorted(map(id, parts)) == sorted(id(p) for p in model.model.visual.parameters())


# --- activation checkpointing -------------------------------------------------------------------------------


class Saved:
    """The bytes that autograd keeps for the backward pass, each storage once."""

    def __enter__(self) -> Saved:
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not tensor.is_leaf:
            self._sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def __exit__(self, *failure: object) -> None:
        self._hooks.__exit__(*failure)
        self.total = sum(self._sizes.values())


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(lora, build, batches):
    def gradients(checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
        model = build(replace(FP32, activation_checkpointing=checkpointing), lora).model
        with Saved() as saved:
            loss = token_logprobs(model, batches[0]).mean()
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, saved.total

    (expected, whole), (found, less) = gradients(False), gradients(True)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
    assert less < 0.6 * whole


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("settings", EVERY)
def test_every_engine_makes_the_same_update_with_recomputed_activations(settings, lora, build, batches, base):
    usual, recomputing = (
        build(replace(settings, activation_checkpointing=checkpointing), lora) for checkpointing in (False, True)
    )
    for backend in (usual, recomputing):
        step(backend, batches)
        step(backend, batches)
    assert difference(weights_of(recomputing), weights_of(usual), base) <= 1e-5
