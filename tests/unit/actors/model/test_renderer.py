"""Rendering: equal to the template where text is trusted, harmless where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import ImageRef, SegmentKind
from actors.model.renderer import ChatRenderer
from actors.model.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer

TAGS = ("<reason>", "</reason>", "<answer>", "</answer>", "<information>", "</information>")
TEXTS = ["Who founded the organisation with the red star emblem?", "It was founded in 1987 by Ada Lune."] * 3
IMAGE = ImageRef("a" * 64, 112, 84)
OTHER = ImageRef("b" * 64, 56, 56)


class Sixteenths:
    """A counter with a rule simple enough to check by hand."""

    def n_tokens(self, ref: ImageRef) -> int:
        return ref.width * ref.height // 784


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, vocabulary=400, tags=TAGS)


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return ChatRenderer(tokenizer, Sixteenths())


def _specials(tokenizer) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}


def _template(tokenizer, messages) -> list[int]:
    text = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _conversation(renderer, turns):
    ids = list(renderer.open(turns[0], []).token_ids)
    for reply, observation in zip(turns[1::2], turns[2::2], strict=True):
        ids += [*renderer.action(reply), *renderer.observe(observation).token_ids]
    return ids


plain = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=40)


@given(turns=st.integers(0, 3).flatmap(lambda n: st.lists(plain, min_size=2 * n + 1, max_size=2 * n + 1)))
@settings(max_examples=60, deadline=None)
def test_pieces_concatenate_to_what_the_template_renders(renderer, tokenizer, turns):
    turns = [f"<reason>{text}" if i % 2 else text for i, text in enumerate(turns)]  # as a policy begins its turns
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
    assert _conversation(renderer, turns) == _template(tokenizer, messages)


def test_a_system_message_comes_first_as_the_template_puts_it(tokenizer):
    renderer = ChatRenderer(tokenizer, Sixteenths(), system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert list(renderer.open("Who?", []).token_ids) == _template(tokenizer, messages)


# As the large models' templates do: a system message where none is given, and a policy that thinks before it speaks
OWN_WAYS = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<reason>{% endif %}").replace(
        "<|vision_start|>", "Picture: <|vision_start|>"
    )
)


def test_what_a_models_own_template_adds_is_in_every_turn(tokenizer):
    renderer = ChatRenderer(tokenizer, Sixteenths(), template=OWN_WAYS)

    def theirs(*messages) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, chat_template=OWN_WAYS, tokenize=False, add_generation_prompt=True
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    shown = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}
    first = renderer.open("<image>Who?", [IMAGE])
    assert list(first.token_ids) == theirs(shown)
    assert first.token_ids[first.images[0].offset] == renderer.image_token
    whole = theirs(shown, {"role": "assistant", "content": "<reason>It is Ada."}, {"role": "user", "content": "Sure?"})
    ids = [*first.token_ids[:-1], *renderer.action("<reason>It is Ada."), *renderer.observe("Sure?").token_ids]
    assert ids == whole  # the generation prompt's <reason> is the policy's own in the rendering of what was said
    own = ChatRenderer(tokenizer, Sixteenths(), system="Be brief.", template=OWN_WAYS)
    assert list(own.open("Who?", []).token_ids) == theirs(
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[-1]['role'] }}", "writes a text 0 times"),
        (CHAT_TEMPLATE.replace("<|image_pad|>", ""), "one placeholder for a picture"),
        (CHAT_TEMPLATE.replace("<|im_end|>", "."), "begins with no special token"),
    ],
)
def test_a_template_that_cannot_be_written_with_is_refused(tokenizer, template, said):
    with pytest.raises(ValueError, match=said):
        ChatRenderer(tokenizer, Sixteenths(), template=template)


def test_a_system_message_is_as_harmless_as_any_text(tokenizer):
    renderer = ChatRenderer(tokenizer, Sixteenths(), system="<|im_end|>" * 3)
    assert list(renderer.open("Who?", []).token_ids).count(renderer.end_of_turn) == 2


def test_images_stand_where_their_marks_were_and_know_their_length(renderer, tokenizer):
    segment = renderer.open("First <image> then <image>, who?", [IMAGE, OTHER])
    content = [
        {"type": "text", "text": "First "},
        {"type": "image"},
        {"type": "text", "text": " then "},
        {"type": "image"},
        {"type": "text", "text": ", who?"},
    ]
    assert list(segment.token_ids) == _template(tokenizer, [{"role": "user", "content": content}])
    assert [placed.ref for placed in segment.images] == [IMAGE, OTHER]
    assert [placed.n_tokens for placed in segment.images] == [12, 4]
    assert all(segment.token_ids[placed.offset] == renderer.image_token for placed in segment.images)
    assert segment.kind is SegmentKind.PROMPT


hostile = st.lists(
    st.one_of(st.sampled_from([*SPECIAL_TOKENS, *TAGS, "\n", " "]), st.text(max_size=8)), max_size=12
).map("".join)


@given(text=hostile)
@settings(max_examples=200, deadline=None)
def test_untrusted_text_never_becomes_a_special_token(renderer, tokenizer, text):
    assert not _specials(tokenizer) & set(renderer.encode(text))


@given(text=hostile.filter(lambda text: "<image>" not in text))
@settings(max_examples=100, deadline=None)
def test_an_observation_has_one_turn_whatever_it_quotes(renderer, tokenizer, text):
    ids = renderer.observe(text).token_ids
    assert int((ids == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum()) == 2  # the user's turn and the reply
    assert int((ids == renderer.end_of_turn).sum()) == 1
    assert int((ids == renderer.image_token).sum()) == 0


def test_our_own_tags_are_single_tokens_also_in_untrusted_text(renderer, tokenizer):
    ids = renderer.encode("<information>Ada Lune</information>")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<information>")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("</information>")


@pytest.mark.parametrize(("text", "images"), [("no mark", [IMAGE]), ("<image><image>", [IMAGE]), ("<image>", [])])
def test_marks_and_images_that_do_not_match_are_refused(renderer, text, images):
    with pytest.raises(ValueError, match="marks cannot place"):
        renderer.observe(text, images)


def test_decoding_gives_back_a_turn_without_its_end(renderer):
    ids = renderer.action("<reason>it is Ada</reason><answer>Ada Lune</answer>")
    assert "Ada Lune" in renderer.decode(ids)
    assert "<answer>" in renderer.decode(ids)
    assert "<|im_end|>" not in renderer.decode(ids)


def test_ids_that_the_tokenizer_does_not_know_have_no_text_and_are_forbidden(renderer, tokenizer):
    ids = np.array([len(tokenizer) + 3, *renderer.action("hi")], dtype=np.int32)
    assert renderer.decode(ids).strip() == "hi"
    assert renderer.forbidden(ids)


def test_a_clean_turn_is_allowed_and_a_turn_marker_or_vision_token_is_not(renderer, tokenizer):
    clean = renderer.action("hi")
    assert not renderer.forbidden(clean)
    assert not renderer.forbidden(clean[:-1])  # cut by length
    assert not renderer.forbidden(clean[:0])
    for name in ("<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"):
        assert renderer.forbidden(np.append(tokenizer.convert_tokens_to_ids(name), clean).astype(np.int32))
    assert renderer.forbidden(np.append(renderer.end_of_turn, clean).astype(np.int32))


def test_a_tokenizer_that_has_no_chat_template_or_another_one_s_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="no chat template"):
        ChatRenderer(other, Sixteenths())
    with pytest.raises(ValueError, match="begins with no special token"):
        ChatRenderer(other, Sixteenths(), template=CHAT_TEMPLATE)
