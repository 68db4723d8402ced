"""Both backends on a tiny real Qwen2.5-VL with pictures: the same update, any cut, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from actors.learner.backends import build_backend
from actors.learner.backends.lockstep import BlankPicture
from actors.learner.backends.ranks import Ranks, join
from actors.learner.backends.state_files import missing_files
from actors.learner.batch import to_micro_batches, train_sequences
from actors.learner.objective import PolicyObjective, SupervisedObjective
from actors.learner.settings import BackendSettings, ObjectiveSettings, OptimizerSettings
from actors.model.forward import token_logprobs
from actors.model.load import load_policy
from actors.model.pixels import Pixels
from cluster.errors import UserError
from cluster.storage import Folder

FP32 = BackendSettings(
    kind="plain", precision="fp32", zero_stage=1, optimizer=OptimizerSettings(lr=1e-3, grad_clip=1.0)
)
EVERY = [
    pytest.param(replace(FP32, kind=kind, zero_stage=stage), id=f"{kind}{stage}")
    for kind, stage in [("plain", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
]
DEEP = EVERY[1:]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return join(Ranks())


@pytest.fixture(scope="module")
def build(tiny_folder, ranks) -> Callable:
    def make(settings: BackendSettings):
        dtype = "float32" if settings.precision == "fp32" else "bfloat16"
        return build_backend(load_policy(tiny_folder, dtype), settings, ranks)

    return make


@pytest.fixture(scope="module")
def sequences(make_episode, image_token):
    groups = [[make_episode(4 * g + i, reward=float(i % 2), turns=1 + (g + i) % 3) for i in range(4)] for g in range(3)]
    found, report = train_sequences(groups, advantage="mean_std", image_token_id=image_token, max_length=500, version=0)
    assert report.sequences == 12
    return found


@pytest.fixture(scope="module")
def batches(sequences, tiny_folder, images) -> Callable:
    pixels = Pixels.load(tiny_folder, images)
    return lambda budget: to_micro_batches(sequences, pixels, 0, budget)


def weights_of(backend) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().clone() for name, tensor in backend.named_weights()}


def update(backend, *steps) -> dict[str, torch.Tensor]:
    """The change of every weight after training on these steps' micro-batches."""
    before = weights_of(backend)
    for micro_batches in steps:
        stats = backend.train_batch(micro_batches, PolicyObjective(ObjectiveSettings()))
        assert stats.skipped == ""
    after = weights_of(backend)
    return {name: after[name] - before[name] for name in before}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative L2 difference of two updates."""
    assert one.keys() == other.keys()
    apart = math.sqrt(sum(float((one[n] - other[n]).square().sum()) for n in one))
    return apart / math.sqrt(sum(float(t.square().sum()) for t in other.values()))


@pytest.mark.parametrize("settings", DEEP)
def test_deepspeed_makes_the_update_that_plain_torch_makes(settings, build, batches):
    steps = [batches(150), batches(400)]
    assert len(steps[0]) != len(steps[1])
    assert difference(update(build(settings), *steps), update(build(FP32), *steps)) <= 1e-4


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_keeps_masters_that_agree_across_backends(stage, build, batches):
    bf16 = replace(FP32, precision="bf16")
    deep = update(build(replace(bf16, kind="deepspeed", zero_stage=stage)), batches(10_000))
    assert difference(deep, update(build(bf16), batches(10_000))) <= 0.05


@pytest.mark.parametrize("settings", EVERY)
def test_the_cut_into_micro_batches_does_not_change_the_update(settings, build, batches):
    whole, pieces = batches(10_000), batches(150)
    assert (len(whole), len(pieces) > 3) == (1, True)
    assert difference(update(build(settings), pieces), update(build(settings), whole)) <= 1e-3


@pytest.mark.parametrize("settings", EVERY)
def test_a_gradient_that_is_not_finite_is_refused_and_training_goes_on(settings, build, batches):
    backend = build(settings)

    class Poisoned(PolicyObjective):
        def __call__(self, current, batch, counts):
            terms = super().__call__(current, batch, counts)
            return replace(terms, loss=terms.loss * float("nan"))

    before = weights_of(backend)
    stats = backend.train_batch(batches(400), Poisoned(ObjectiveSettings()))
    assert "not finite" in stats.skipped
    assert stats.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(backend).items())
    assert difference(update(backend, batches(400)), update(build(settings), batches(400))) <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", EVERY)
def test_a_checkpoint_continues_exactly(settings, precision, build, batches, tmp_path):
    settings = replace(settings, precision=precision)
    first = build(settings)
    update(first, batches(400), batches(400))
    first.save(tmp_path / "checkpoint")
    assert missing_files(Folder(tmp_path / "checkpoint")) == []
    saved = weights_of(first)
    expected = update(first, batches(400))
    second = build(settings)
    second.load(tmp_path / "checkpoint")
    assert second.steps == 2
    assert all(torch.equal(tensor, saved[name]) for name, tensor in weights_of(second).items())
    assert difference(update(second, batches(400)), expected) <= 1e-6


@pytest.mark.parametrize(("saved", "loaded"), [(EVERY[0], EVERY[4]), (EVERY[4], EVERY[1]), (EVERY[2], EVERY[0])])
def test_one_engine_continues_from_what_another_saved(saved, loaded, build, batches, tmp_path):
    first, second = build(saved.values[0]), build(loaded.values[0])
    update(first, batches(400))
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    assert difference(update(second, batches(400)), update(first, batches(400))) <= 1e-4


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[1], EVERY[2], EVERY[4]])
def test_going_back_to_the_start_forgets_what_was_learned(settings, build, batches, tmp_path):
    backend = build(settings)
    backend.save(tmp_path / "start")
    expected = update(backend, batches(400), batches(400))
    backend.load(tmp_path / "start")
    assert backend.steps == 0
    assert difference(update(backend, batches(400), batches(400)), expected) <= 1e-6


def test_the_random_numbers_go_on_where_they_were(build, batches, tmp_path):
    backend = build(FP32)
    backend.save(tmp_path / "checkpoint")
    drawn = torch.rand(4)
    torch.rand(7)
    backend.load(tmp_path / "checkpoint")
    assert torch.equal(torch.rand(4), drawn)


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[2]])
def test_a_missing_or_truncated_checkpoint_is_a_clear_error(settings, build, batches, tmp_path):
    backend = build(settings)
    with pytest.raises(UserError, match="cannot be loaded"):
        backend.load(tmp_path / "nowhere")
    update(backend, batches(400))
    backend.save(tmp_path / "torn")
    (part,) = (tmp_path / "torn").glob("part-*.safetensors")
    part.write_bytes(part.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        build(settings).load(tmp_path / "torn")


def test_a_checkpoint_of_a_model_that_is_trained_in_other_parts_is_refused(build, batches, tmp_path, tiny_folder):
    whole = build(FP32)
    update(whole, batches(400))
    whole.save(tmp_path / "whole")
    model = load_policy(tiny_folder)
    model.model.visual.requires_grad_(False)
    part = build_backend(model, FP32, Ranks())
    with pytest.raises(UserError, match=r"trained in other parts, as .*visual"):
        part.load(tmp_path / "whole")
    part.save(tmp_path / "part")
    with pytest.raises(UserError, match=r"trained in other parts, as .*visual"):
        whole.load(tmp_path / "part")


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[2]])
def test_cross_entropy_goes_down(settings, build, batches):
    backend = build(settings)
    losses = [backend.train_batch(batches(400), SupervisedObjective()).loss for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[4]])
def test_logprobs_are_those_the_step_trains_on(settings, build, batches):
    backend = build(settings)
    batch = batches(10_000)[0]
    seen = []

    class Listening(PolicyObjective):
        def __call__(self, current, batch, counts):
            seen.append(current.detach().clone())
            return super().__call__(current, batch, counts)

    (scored,) = backend.logprobs([batch])
    assert not scored.requires_grad
    backend.train_batch([batch], Listening(ObjectiveSettings()))
    assert torch.allclose(scored, seen[0], atol=1e-6)


@pytest.mark.parametrize("settings", [EVERY[0], EVERY[4]])
def test_an_export_loads_as_the_same_model(settings, build, batches, tmp_path, tiny_folder):
    from actors.model.load import copy_without_weights

    backend = build(settings)
    update(backend, batches(400))
    copy_without_weights(tiny_folder, tmp_path)
    backend.export(tmp_path)
    loaded = dict(load_policy(tmp_path).named_parameters())
    assert loaded.keys() == weights_of(backend).keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(backend).items())


def test_a_rank_that_does_not_write_the_export_keeps_none_of_its_weights(build, tmp_path):
    backend = build(replace(FP32, kind="deepspeed", zero_stage=3))
    read = []

    class Passing:
        def detach(self) -> None:
            raise AssertionError("a weight was copied that nobody writes")

    def weights():
        for name in ("first", "last"):
            yield name, Passing()
            read.append(name)

    backend.ranks, backend.named_weights = Ranks(rank=1), weights
    backend.export(tmp_path)
    assert read == ["first", "last"]  # with the others, who wait for it in every bucket
    assert not any(tmp_path.iterdir())


def test_a_step_without_micro_batches_is_refused(build):
    with pytest.raises(ValueError, match="at least one"):
        build(FP32).train_batch([], SupervisedObjective())


def test_a_shared_picture_is_read_once_and_changes_nothing(build, sequences, batches):
    """The same log-probs and gradients as when every appearance is given its own pixels."""
    (shared,) = batches(10_000)
    assert shared.image_index is not None
    sizes = shared.image_grid_thw.prod(-1)
    distinct = int(shared.image_index.max()) + 1
    assert distinct < len(shared.image_index)
    assert len(shared.pixel_values) == distinct * int(sizes[0])
    pictures = shared.pixel_values.split(int(sizes[0]))
    apart = replace(
        shared, image_index=None, pixel_values=torch.cat([pictures[i] for i in shared.image_index.tolist()])
    )
    backend = build(FP32)
    assert torch.allclose(*backend.logprobs([shared, apart]), atol=1e-6)
    assert difference(update(backend, [shared]), update(build(FP32), [apart])) <= 1e-3


@pytest.fixture(scope="module")
def text_batches(make_episode, image_token, tiny_folder, images):
    group = [make_episode(100 + i, reward=float(i % 2), turns=1 + i % 3, pictures=False) for i in range(4)]
    found, _ = train_sequences([group], advantage="mean", image_token_id=image_token, max_length=500, version=0)
    return to_micro_batches(found, Pixels.load(tiny_folder, images), 0, 40)


def test_a_blank_picture_behind_the_text_changes_no_logprob_and_no_gradient(tiny_folder, text_batches):
    def scored(blank: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = load_policy(tiny_folder)
        behind = BlankPicture.of(model.config).behind
        found = token_logprobs(model, behind(text_batches[0]) if blank else text_batches[0])
        found.sum().backward()
        return found.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    (plain, expected), (seen, gradients) = scored(blank=False), scored(blank=True)
    assert torch.allclose(seen, plain, atol=1e-6)
    visual = {name for name in gradients if ".visual." in name}
    assert gradients.keys() - visual == expected.keys()
    assert visual
    assert not any(gradients[name].any() for name in visual)
    assert all(torch.allclose(gradients[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("settings", DEEP)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_pictures_uses_no_gradient_of_the_step_before(precision, settings, build, batches, text_batches):
    """ZeRO-3 would add to what it kept of the vision tower's, whose weights this step does not touch."""
    settings = replace(settings, precision=precision)
    mixed = [text_batches[0], batches(10_000)[0], *text_batches[1:]]
    steps = [batches(400), text_batches, mixed]
    found = update(build(settings), *steps)
    expected = update(build(replace(FP32, precision=precision)), *steps)
    visual = [name for name in found if ".visual." in name]
    apart = difference({n: found[n] for n in visual}, {n: expected[n] for n in visual})
    assert apart <= (1e-3 if precision == "fp32" else 0.1)
    assert difference(found, expected) <= (1e-3 if precision == "fp32" else 0.1)


MUON = replace(FP32, optimizer=replace(FP32.optimizer, kind="muon", weight_decay=0.0))


def test_muon_moves_inner_matrices_all_directions_alike_and_the_rest_as_adamw(build, batches):
    moved = update(build(MUON), batches(10_000))
    as_adamw = update(build(replace(FP32, optimizer=replace(FP32.optimizer, weight_decay=0.0))), batches(10_000))
    matrix = next(name for name in moved if name.endswith("layers.0.mlp.down_proj.weight"))
    singular = torch.linalg.svdvals(moved[matrix])
    assert float(singular.max() / singular.median()) < 2
    adamw = torch.linalg.svdvals(as_adamw[matrix])
    assert float(adamw.max() / adamw.median()) > 3
    assert torch.allclose(moved["lm_head.weight"], as_adamw["lm_head.weight"])


def test_muon_continues_from_a_checkpoint_as_if_it_had_never_stopped(build, batches, tmp_path):
    one = build(MUON)
    update(one, batches(10_000))
    one.save(tmp_path)
    other = build(MUON)
    other.load(tmp_path)
    assert difference(update(other, batches(10_000)), update(one, batches(10_000))) <= 1e-5
