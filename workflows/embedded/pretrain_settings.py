"""How the embedded base model is made. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from actors.model.tiny import TinySize
from workflows.embedded.lessons import LessonMix
from workflows.supervised import AT_LEAST_ONE, NOT_NEGATIVE, SupervisedSettings


@dataclass(frozen=True)
class PretrainSettings(SupervisedSettings):
    """A tiny Qwen2.5-VL from nothing, taught in lessons about the embedded world."""

    steps: int = field(default=900, metadata=AT_LEAST_ONE)
    # optimizer steps; see apis.md 8 for what is learned when
    optimizer: Literal["adamw", "muon"] = "muon"
    # from nothing, Muon needs a quarter of AdamW's steps until copying is learned
    engine: Literal["deepspeed", "plain"] = "plain"
    # what Muon runs in
    warmup_steps: int = field(default=15, metadata=NOT_NEGATIVE)
    # optimizer steps of linear rise from 0
    size: TinySize = field(default_factory=TinySize)
    # of the model
    lessons: LessonMix = field(default_factory=LessonMix)
    # shares of the kinds of lessons after that
    reading_steps: int = field(default=130, metadata=NOT_NEGATIVE)
    # of the steps, the first ones, that teach to copy and little else: a fresh model learns it in half the steps that
    # one needs which has learned to see
    seeing_steps: int = field(default=130, metadata=NOT_NEGATIVE)
    # the steps after those, that teach to describe pictures, the most to see in a token, and just enough reading that
    # it is not forgotten
    corpus: int = field(default=6000, metadata=AT_LEAST_ONE)
    # lessons whose words the tokenizer is trained on
