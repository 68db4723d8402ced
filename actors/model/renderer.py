"""Text to tokens and back: the only owner of image placeholders, and of how turns are put together.

A conversation is written in pieces that concatenate to what the model's own chat template renders (`template.py`):

    open      all before the first text, the text, and what asks for a reply
    (action)  ... sampled by the policy, ends with the end-of-turn token
    observe   from behind that token: the next text, and what asks for a reply

Always true: ids of special tokens enter by id, never by text. All text, ours and the world's, is tokenised with special
tokens switched off, so `<|im_end|>` on a web page stays seven harmless pieces. No id is written down here: all of them
are those of the tokenizer and its template.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.agent.trajectory import ImageRef, IntArray, PlacedImage, Segment, SegmentKind
from actors.model.template import Piece, read_template
from cluster.errors import UserError

IMAGE_MARK = "<image>"  # where an image goes in a text

# What transformers' processors of this family look for where a tokenizer does not name its placeholder
_IMAGE_PAD = "<|image_pad|>"
# Tokens that only the task may write, besides the template's; those that a tokenizer does not have are skipped.
_RESERVED = ("<|video_pad|>", "<|vision_pad|>")
_REMEMBERED = 4096  # texts: the episodes of a question begin alike, and often find the same pages


class TokenCounter(Protocol):
    """Knows how long an image's placeholder becomes (`actors.model.pixels.Pixels`)."""

    def n_tokens(self, ref: ImageRef) -> int: ...


class ChatRenderer:
    """`agent.seams.Renderer` for a tokenizer, by its chat template. `system` is an optional system message.

    Raise `ValueError` for a template that it cannot be written with: that shows no picture, or texts not once.
    """

    def __init__(self, tokenizer: Any, counter: TokenCounter, system: str = "", template: str | None = None) -> None:
        """`template`: the processor's, where the tokenizer has none of its own."""
        self._tokenizer = tokenizer
        self._counter = counter
        self._vocabulary = len(tokenizer)
        self._chat = read_template(tokenizer, template, system)
        self.end_of_turn = self._chat.end_of_turn
        known = tokenizer.get_vocab()
        self.image_token = int(known.get(getattr(tokenizer, "image_token", None) or _IMAGE_PAD, -1))
        if self._chat.picture.count(self.image_token) != 1:
            raise ValueError("the chat template does not write one placeholder for a picture")
        self._reserved = self._chat.special - {self.end_of_turn} | {known[name] for name in _RESERVED if name in known}
        self._encoded = lru_cache(_REMEMBERED)(self._tokens_of)

    def open(self, text: str, images: Sequence[ImageRef]) -> Segment:
        """The first user turn with generation prompt. Raise `ValueError` unless `text` has one mark per image."""
        return self._segment(SegmentKind.PROMPT, self._chat.opening, text, images)

    def observe(self, text: str, images: Sequence[ImageRef] = ()) -> Segment:
        """A further user turn with generation prompt, from what follows the policy's end-of-turn token."""
        return self._segment(SegmentKind.OBSERVATION, self._chat.between, text, images)

    def decode(self, token_ids: IntArray) -> str:
        """The text of a sampled turn, without the end-of-turn token. Ids outside the vocabulary have no text."""
        ids = [int(i) for i in token_ids if i < self._vocabulary]
        if ids and ids[-1] == self.end_of_turn:
            ids.pop()
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def forbidden(self, token_ids: IntArray) -> bool:
        """Whether a turn holds what only the task may write: vision tokens, an early turn marker, unknown ids."""
        ids = token_ids.tolist()  # a turn is short: Python is quicker than three arrays
        return (
            not self._reserved.isdisjoint(ids)
            or self.end_of_turn in ids[:-1]
            or max(ids, default=0) >= self._vocabulary
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: special tokens in it are ordinary characters, the agent's own tags are their tokens."""
        return list(self._encoded(text)) if text else []

    def action(self, text: str) -> IntArray:
        """Ids of a whole turn that says `text`, end-of-turn token included: what a scripted policy "samples"."""
        return np.array([*self.encode(text), self.end_of_turn], dtype=np.int32)

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _segment(self, kind: SegmentKind, before: Piece, text: str, images: Sequence[ImageRef]) -> Segment:
        pieces = text.split(IMAGE_MARK)
        if len(pieces) != len(images) + 1:
            raise ValueError(f"a text with {len(pieces) - 1} {IMAGE_MARK} marks cannot place {len(images)} images")
        turn: list[int | str] = [*before, pieces[0]]
        for piece in pieces[1:]:
            turn += [*self._chat.picture, piece]
        ids = np.array(self._ids([*turn, *self._chat.asking]), dtype=np.int32)
        offsets = np.flatnonzero(ids == self.image_token).tolist()  # no text is ever tokenised to it
        placed = tuple(
            PlacedImage(offset, ref, self._counter.n_tokens(ref)) for offset, ref in zip(offsets, images, strict=True)
        )
        return Segment(kind, ids, images=placed, text=text)

    def _ids(self, items: Sequence[int | str]) -> list[int]:
        """Special tokens as they are, and each run of text between them in one."""
        ids: list[int] = []
        run = ""
        for item in items:
            if isinstance(item, str):
                run += item
            else:
                ids += [*self.encode(run), item]
                run = ""
        return ids + self.encode(run)


def load_renderer(model_path: str | Path, system: str = "") -> ChatRenderer:
    """The renderer of a model folder in Hugging Face format. Raise `UserError` for a chat template of no use."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    template = None if tokenizer.chat_template else AutoProcessor.from_pretrained(model_path).chat_template
    counter = _ProcessorCounter(AutoImageProcessor.from_pretrained(model_path))
    try:
        return ChatRenderer(tokenizer, counter, system, template)
    except ValueError as error:
        raise UserError(f"{model_path} cannot be talked to: {error}.") from error


class _ProcessorCounter:
    """Counts image tokens from sizes alone: a renderer needs no bytes."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor

    def n_tokens(self, ref: ImageRef) -> int:
        from actors.model.pixels import count_image_tokens

        return count_image_tokens(self._image_processor, ref.width, ref.height)
