"""How the embedded base model is made. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.model.tiny import TinySize
from workflows.embedded.lessons import LessonMix
from workflows.supervised import AT_LEAST_ONE, SupervisedSettings


@dataclass(frozen=True)
class PretrainSettings(SupervisedSettings):
    """A tiny Qwen2.5-VL from nothing, taught in lessons about the embedded world."""

    steps: int = field(default=900, metadata=AT_LEAST_ONE)
    # optimizer steps; see apis.md 8 for what is learned when
    size: TinySize = field(default_factory=TinySize)
    # of the model
    lessons: LessonMix = field(default_factory=LessonMix)
    # shares of the kinds of lessons
    scenes: int = field(default=2000, metadata=AT_LEAST_ONE)
    # different pictures to learn to see from
    corpus: int = field(default=6000, metadata=AT_LEAST_ONE)
    # lessons whose words the tokenizer is trained on
