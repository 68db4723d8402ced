"""What `mmsearch demo` is told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.variants import ABLATIONS

SECONDS = {"ge": 0.0}


@dataclass(frozen=True)
class Expected:
    """Seconds per stage on 2 cores, for the remaining time that is shown; corrected by what stages really take."""

    pretrain: float = field(default=400.0, metadata=SECONDS)
    # tokenizer, world, base model
    dataset: float = field(default=60.0, metadata=SECONDS)
    # questions and the teacher's conversations
    sft: float = field(default=90.0, metadata=SECONDS)
    # fine-tuning
    grpo: float = field(default=370.0, metadata=SECONDS)
    # reinforcement, start of all actors included
    evaluate: float = field(default=80.0, metadata=SECONDS)
    # all arms


@dataclass(frozen=True)
class DemoSettings:
    """The whole thing, stage by stage."""

    expected: Expected = field(default_factory=Expected)
    # seconds
    memory_every_s: float = field(default=5.0, metadata={"gt": 0.0})
    # how often memory is measured
    ablations: list[str] = field(default_factory=lambda: [it.name for it in ABLATIONS])
    # that --ablations makes, of workflows/variants.py

    def check(self) -> None:
        """Raise ValueError for an ablation that there is not."""
        names = [it.name for it in ABLATIONS]
        if unknown := sorted(set(self.ablations) - set(names)):
            raise ValueError(f"ablations holds {', '.join(unknown)}; accepted: {', '.join(names)}")
