"""Text to tokens and back: the only owner of the chat template and of image placeholders.

Qwen's ChatML. A conversation is written in pieces that concatenate to what the model's own template renders:

    open      <|im_start|>user\\n ... <|im_end|>\\n<|im_start|>assistant\\n
    (action)  ... <|im_end|>                                   sampled by the policy, ends with the end-of-turn token
    observe   \\n<|im_start|>user\\n ... <|im_end|>\\n<|im_start|>assistant\\n

Always true: ids of special tokens enter by id, never by text. All text, ours and the world's, is tokenised with special
tokens switched off, so `<|im_end|>` on a web page stays seven harmless pieces. No id is written down here: all of them
are looked up in the tokenizer by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.agent.trajectory import ImageRef, IntArray, PlacedImage, Segment, SegmentKind

IMAGE_MARK = "<image>"  # where an image goes in a text

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_VISION_START, _IMAGE_PAD, _VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
# Tokens that only the task may write; those that a tokenizer does not have are skipped.
_RESERVED = (_TURN_START, _VISION_START, _VISION_END, _IMAGE_PAD, "<|video_pad|>", "<|vision_pad|>")
_REMEMBERED = 4096  # texts: the episodes of a question begin alike, and often find the same pages


class TokenCounter(Protocol):
    """Knows how long an image's placeholder becomes (`actors.model.pixels.Pixels`)."""

    def n_tokens(self, ref: ImageRef) -> int: ...


class ChatRenderer:
    """`agent.seams.Renderer` for a tokenizer with Qwen's special tokens. `system` is an optional system message."""

    def __init__(self, tokenizer: Any, counter: TokenCounter, system: str = "") -> None:
        self._tokenizer = tokenizer
        self._counter = counter
        self._vocabulary = len(tokenizer)
        self.turn_start = _require(tokenizer, _TURN_START)
        self.end_of_turn = _require(tokenizer, _TURN_END)
        self.image_token = _require(tokenizer, _IMAGE_PAD)
        self._vision = (_require(tokenizer, _VISION_START), _require(tokenizer, _VISION_END))
        known = tokenizer.get_vocab()
        self._reserved = frozenset(known[name] for name in _RESERVED if name in known)
        self._encoded = lru_cache(_REMEMBERED)(self._tokens_of)
        self._newline = self.encode("\n")
        self._reply = [*self._newline, self.turn_start, *self.encode("assistant\n")]
        self._preamble = self._turn("system", system, ())[0] + self._newline if system else []

    def open(self, text: str, images: Sequence[ImageRef]) -> Segment:
        """The first user turn with generation prompt. Raise `ValueError` unless `text` has one mark per image."""
        return self._segment(SegmentKind.PROMPT, self._preamble, text, images)

    def observe(self, text: str, images: Sequence[ImageRef] = ()) -> Segment:
        """A further user turn with generation prompt, from the newline that follows the policy's end-of-turn token."""
        return self._segment(SegmentKind.OBSERVATION, self._newline, text, images)

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

    def _segment(self, kind: SegmentKind, before: list[int], text: str, images: Sequence[ImageRef]) -> Segment:
        turn, offsets = self._turn("user", text, images)
        ids = np.array([*before, *turn, *self._reply], dtype=np.int32)
        placed = tuple(
            PlacedImage(len(before) + offset, ref, self._counter.n_tokens(ref))
            for offset, ref in zip(offsets, images, strict=True)
        )
        if int((ids == self.image_token).sum()) != len(placed):
            raise ValueError(f"{len(placed)} images but {int((ids == self.image_token).sum())} placeholders")
        return Segment(kind, ids, images=placed, text=text)

    def _turn(self, role: str, text: str, images: Sequence[ImageRef]) -> tuple[list[int], list[int]]:
        """One whole turn without the newline after it, and the offsets of its placeholders."""
        pieces = text.split(IMAGE_MARK)
        if len(pieces) != len(images) + 1:
            raise ValueError(f"a text with {len(pieces) - 1} {IMAGE_MARK} marks cannot place {len(images)} images")
        ids, offsets = [self.turn_start, *self.encode(f"{role}\n{pieces[0]}")], []
        for piece in pieces[1:]:
            offsets.append(len(ids) + 1)
            ids += [self._vision[0], self.image_token, self._vision[1], *self.encode(piece)]
        return [*ids, self.end_of_turn], offsets


def load_renderer(model_path: str | Path, system: str = "") -> ChatRenderer:
    """The renderer of a model folder in Hugging Face format."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return ChatRenderer(tokenizer, _ProcessorCounter(AutoImageProcessor.from_pretrained(model_path)), system)


class _ProcessorCounter:
    """Counts image tokens from sizes alone: a renderer needs no bytes."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor

    def n_tokens(self, ref: ImageRef) -> int:
        from actors.model.pixels import count_image_tokens

        return count_image_tokens(self._image_processor, ref.width, ref.height)


def _require(tokenizer: Any, name: str) -> int:
    found = tokenizer.get_vocab().get(name)
    if found is None:
        raise ValueError(f"the tokenizer has no {name} token: it does not speak Qwen's chat format")
    return int(found)
