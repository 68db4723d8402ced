"""Grounding DINO's own architecture, tiny and random: what it finds means nothing, how it is asked does."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.search.grounding.dino import DinoGrounder, DinoSettings, GroundingDino, GroundingDinoActor, suppressed
from actors.search.seams import ErrorKind, ProviderError, ScoredBox
from cluster.errors import UserError
from tests.unit.actors.search.grounding.tiny_dino import MAX_TOKENS, encoded, photo

EVERYTHING = {"threshold": 0.0, "nms_iou": 1.0, "pad_to": 32, "gather_ms": 0.0}


@pytest.fixture(scope="session")
def dino(checkpoint):
    return GroundingDino(DinoSettings(checkpoint, **EVERYTHING))


def asked(dino, **changes):
    """The same model, asked in another way."""
    other = object.__new__(GroundingDino)
    other.__dict__ = {**dino.__dict__, "_settings": replace(dino._settings, **changes)}
    return other


def numbers(boxes):
    return torch.tensor([[*box.box, box.score] for box in boxes])


def same(a, b):
    return len(a) == len(b) and torch.allclose(numbers(a), numbers(b), atol=1e-3)


# --- boxes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (33, 200), (500, 40)])
def test_boxes_lie_in_the_picture_have_an_area_and_come_best_first(dino, size):
    (found,) = dino.detect([photo(*size)], ["a red square"])
    assert found
    for one in found:
        x0, y0, x1, y1 = one.box
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]
        assert 0 < one.score <= 1
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)


def test_boxes_are_what_transformers_own_reading_gives_cut_at_the_borders(dino, checkpoint):
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    picture = photo(120, 72)  # 160 x 96 after scaling, a multiple of 32 already
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(checkpoint).eval()
    inputs = processor(images=[picture], text=["a red square."], return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs)
    read = processor.post_process_grounded_object_detection(out, threshold=0.0, target_sizes=[(72, 120)])[0]
    limit = torch.tensor([120.0, 72.0, 120.0, 72.0])
    own = sorted(
        (ScoredBox(tuple(box.tolist()), float(score)) for box, score in zip(
            torch.minimum(read["boxes"].clamp(min=0), limit), read["scores"], strict=True)),
        key=lambda one: -one.score,
    )  # fmt: skip
    assert same(dino.detect([picture], ["A red  SQUARE"])[0], own)


def test_pictures_and_prompts_of_unequal_size_give_in_one_batch_what_they_give_alone(dino):
    pictures = [photo(80, 60, 1), photo(60, 80, 2), photo(80, 60, 3), photo(300, 20, 4), photo(82, 60, 5)]
    words = ["cat", "the red square left of the blue circle over a green star", "dog?", "a star", "blue"]
    together = dino.detect(pictures, words)
    alone = [dino.detect([picture], [expression])[0] for picture, expression in zip(pictures, words, strict=True)]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert not same(together[0], together[2])


def test_pictures_of_one_size_share_a_pass_and_others_do_not(dino, monkeypatch):
    passes = []
    forward = dino._forward
    two = asked(dino, max_batch=2)
    monkeypatch.setattr(two, "_forward", lambda inputs, texts: passes.append(len(texts)) or forward(inputs, texts))
    two.detect([photo(80, 60), photo(60, 80), photo(80, 60), photo(80, 60)], ["cat"] * 4)
    assert sorted(passes) == [1, 1, 2]


@pytest.mark.parametrize(("size", "scaled"), [((80, 60), (96, 128)), ((99, 60), (96, 158)), ((60, 99), (158, 96))])
def test_scaled_pictures_are_padded_to_few_sizes_and_the_padding_is_masked(dino, size, scaled):
    values, mask = dino._pixels(photo(*size))
    height, width = scaled
    assert mask.shape == values.shape[1:] == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert mask[:height, :width].all()
    assert mask.sum() == height * width
    assert not values[:, mask == 0].any()


def test_nothing_above_the_threshold_is_nothing_found(dino):
    assert asked(dino, threshold=1.0).detect([photo(), photo(60, 90)], ["cat", "dog"]) == [[], []]


def test_a_score_must_be_above_the_threshold(dino):
    (found,) = dino.detect([photo()], ["cat"])
    middle = sorted(one.score for one in found)[1]
    (less,) = asked(dino, threshold=middle).detect([photo()], ["cat"])
    assert [one.score for one in less] == [one.score for one in found if one.score > middle]


def test_scores_and_boxes_that_are_no_numbers_are_no_detections(dino):
    nan, box = float("nan"), [0.2, 0.2, 0.4, 0.4]
    boxes = torch.tensor([box, [nan, 0.2, 0.4, 0.4], [0.5, 0.5, 0.5, 0.9], [1.1, 0.1, 1.4, 0.3], [-0.5, 0.5, 0.5, 1.5]])
    scores = torch.tensor([nan, 0.9, 0.9, 0.9, 0.8])
    (only,) = dino._boxes(scores, boxes, (100, 200), (100, 200))
    assert only.box == (0.0, 100.0, 50.0, 200.0)


def test_of_boxes_on_a_widened_canvas_only_what_is_in_the_picture_counts(dino):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0]])
    (only,) = dino._boxes(torch.tensor([0.5, 0.9]), boxes, (200, 20), (200, 8))
    assert only.box == (0.0, 0.0, 200.0, 8.0)


# --- suppression --------------------------------------------------------------------------------------------------


def test_of_two_boxes_that_overlap_by_more_than_the_bound_the_better_one_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [0, 0, 10, 4]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.4])
    assert suppressed(boxes, scores, 0.79) == [1, 3, 2]
    assert suppressed(boxes, scores, 0.81) == [1, 0, 3, 2]
    assert suppressed(boxes, scores, 0.0) == [1, 2]


def test_of_boxes_with_one_score_the_first_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    assert suppressed(boxes, torch.tensor([0.5, 0.5]), 0.7) == [0]


def test_of_no_boxes_none_stays(dino):
    assert suppressed(torch.zeros(0, 4), torch.zeros(0), 0.5) == []


side = st.integers(1, 20)
box = st.tuples(st.integers(0, 20), st.integers(0, 20), side, side).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def iou(a, b):
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@given(st.lists(st.tuples(box, st.integers(0, 100)), max_size=12), st.sampled_from([0.0, 0.31, 0.53, 0.71, 1.0]))
def test_what_stays_does_not_overlap_and_what_goes_overlaps_a_better_one(detections, bound):
    boxes = torch.tensor([b for b, _ in detections], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([s for _, s in detections], dtype=torch.float32)
    kept = suppressed(boxes, scores, bound)
    assert [detections[i][1] for i in kept] == sorted((detections[i][1] for i in kept), reverse=True)
    for i, (a, score) in enumerate(detections):
        overlapped = [k for k in kept if k != i and iou(a, detections[k][0]) > bound]
        if i in kept:
            assert not overlapped
        else:
            assert any(detections[k][1] >= score for k in overlapped)


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("A Red  Square", "a red square."),
        ("cat.", "cat."),
        ("Mr. Cat's dog?!", "mr cat's dog !."),
        ("the cat. the dog.", "the cat the dog."),
        ("a [SEP] cat", "a [sep] cat."),
        ("猫。", "猫."),
        ("", ""),
        (" .?! ", ""),
        ("\n\t", ""),
    ],
)
def test_an_expression_is_one_phrase_in_the_models_form(dino, expression, expected):
    assert dino.prompt(expression) == expected


def test_words_cannot_form_a_separator_of_the_models(dino):
    tokens = dino._tokenizer(dino.prompt("a [SEP] cat [CLS]. dog? [PAD]"))["input_ids"]
    assert [token for token in tokens if token in (0, 101, 102, 1012, 1029)] == [101, 1012, 102]


@pytest.mark.parametrize("expression", ["cat " * 500, "x" * 5000, "a red square left of " * 20, "x1" * 40])
def test_an_expression_beyond_the_models_length_loses_its_end(dino, expression):
    prompt = dino.prompt(expression)
    assert prompt.endswith(".")
    assert expression.startswith(prompt[:-1])
    n = len(dino._tokenizer(prompt)["input_ids"])
    assert n <= MAX_TOKENS
    assert len(prompt) > 20 or n > MAX_TOKENS - 3
    assert dino.detect([photo()], [expression]) == dino.detect([photo()], [prompt])


@given(st.text(max_size=120))
def test_any_text_is_a_prompt_that_fits_or_names_nothing(dino, expression):
    prompt = dino.prompt(expression)
    assert prompt == "" or (prompt.endswith(".") and prompt.count(".") == 1 and "?" not in prompt)
    assert len(dino._tokenizer(prompt)["input_ids"]) <= MAX_TOKENS


def test_where_nothing_is_named_nothing_is_found_and_the_neighbours_are_served(dino):
    first, second = dino.detect([photo(), photo()], ["?!", "cat"])
    assert first == []
    assert same(second, dino.detect([photo()], ["cat"])[0])


# --- the actor's class, in this process -----------------------------------------------------------------------------


@pytest.fixture
def actor(checkpoint, dino, monkeypatch):
    monkeypatch.setattr("actors.search.grounding.dino.GroundingDino", lambda settings: dino)  # loaded already
    return GroundingDinoActor(DinoSettings(checkpoint, **EVERYTHING))


async def test_calls_at_once_get_what_they_get_alone(actor, dino):
    seeds = range(5)
    found = await asyncio.gather(*(actor.ground(encoded(photo(seed=i)), "cat") for i in seeds))
    assert all(same(found[i], dino.detect([photo(seed=i)], ["cat"])[0]) for i in seeds)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(photo())[:200]])
async def test_an_unreadable_picture_is_its_own_callers_bad_request(actor, data):
    bad, good = await asyncio.gather(
        actor.ground(data, "cat"), actor.ground(encoded(photo()), "cat"), return_exceptions=True
    )
    assert isinstance(bad, ProviderError)
    assert bad.kind is ErrorKind.BAD_REQUEST
    assert good


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 5000), (3, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
async def test_pictures_of_any_shape_and_mode_are_searched(actor, size, mode):
    for one in await actor.ground(encoded(Image.new("RGB", size, (200, 30, 30)).convert(mode)), "a red square"):
        assert 0 <= one.box[0] < one.box[2] <= size[0]
        assert 0 <= one.box[1] < one.box[3] <= size[1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("2 GiB"), ErrorKind.TRANSIENT),
        (RuntimeError("shape"), ErrorKind.BAD_REQUEST),
        (ValueError("size"), ErrorKind.BAD_REQUEST),
    ],
)
async def test_a_model_that_fails_says_whether_it_may_pass(actor, monkeypatch, error, kind):
    class Failing:
        def detect(self, images, expressions):
            raise error

    monkeypatch.setattr(actor, "_dino", Failing())
    with pytest.raises(ProviderError) as caught:
        await actor.ground(encoded(photo()), "cat")
    assert caught.value.kind is kind


async def test_a_model_that_cannot_be_loaded_is_told_to_every_caller(tmp_path):
    actor = GroundingDinoActor(DinoSettings(str(tmp_path)))
    for _ in range(2):
        with pytest.raises(ProviderError, match="cannot be loaded") as caught:
            await actor.ground(encoded(photo()), "cat")
        assert caught.value.kind is ErrorKind.BAD_REQUEST


# --- the client -----------------------------------------------------------------------------------------------------


async def test_without_ray_the_model_is_held_by_this_process_once(checkpoint, dino, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    grounder = DinoGrounder(checkpoint, **EVERYTHING)
    found = await asyncio.gather(*(grounder.ground(encoded(photo()), "cat") for _ in range(3)))
    expected = dino.detect([photo()], ["cat"])[0]
    assert all(same(one, expected) for one in found)


def test_the_same_settings_name_the_same_actor_and_others_another():
    name = DinoGrounder("some/model").actor_name
    assert name == DinoGrounder("some/model", threshold=0.25).actor_name
    others = [{"threshold": 0.3}, {"num_gpus": 1}, {"model": "other"}]
    assert name not in {DinoGrounder(**{"model": "some/model", **other}).actor_name for other in others}


@pytest.mark.parametrize(
    "kwargs", [{"model": ""}, {"threshold": 1.5}, {"nms_iou": -1}, {"max_batch": 0}, {"pad_to": 0}, {"gather_ms": -1}]
)
def test_what_makes_no_sense_cannot_be_configured(kwargs):
    with pytest.raises(UserError):
        DinoGrounder(**{"model": "m", **kwargs})


def test_making_a_grounder_imports_nothing_heavy():
    code = (
        "import sys; from actors.search.grounding.dino import DinoGrounder; DinoGrounder('some/model');"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
