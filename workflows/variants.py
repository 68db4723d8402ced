"""The same recipe once more: with other seeds, or with one thing taken away (ablations). Pure.

A variant is a list of `key=value` words that are added to those of the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from workflows.stage import Stage

# In a comparison over seeds: all that the trained agent is held against, beside itself.
COMPARED = ("direct", "prompted", "rag", "rag_rl", "rag_crop_rl", "sft", "rl")


@dataclass(frozen=True)
class Ablation:
    """GRPO from the same SFT model, with one thing taken away."""

    name: str
    says: str
    words: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Inside the run's folder."""
        return f"ablations/{self.name}"


ABLATIONS = (
    Ablation("no_crop", "RL without crop search: only whole pictures can be searched", ("agent.preset=compact_whole",)),
    Ablation("no_penalty", "RL without search penalty: a search costs nothing", ("reward.search_penalty=0",)),
    Ablation("unbalanced", "RL on unbalanced data: 5 % of the questions are search-free", ("grpo.search_free=0.05",)),
)


def seed_words(settings: Any, number: int) -> list[str]:
    """Of the `number`-th run over seeds, 0 being the run itself: another seed of training and another world."""
    words = [f"evaluate.arms=[{','.join(COMPARED)}]"]
    if number:
        run, seed = settings.run, settings.run.seed + number
        words += [f"run.seed={seed}", f"world.seed={settings.world.seed + number}", f"run.name={run.name}-seed{seed}"]
        words += [f"run.storage={run.storage.rstrip('/')}-seed{seed}"] if run.storage else []
    return words


def ablation_words(ablation: Ablation) -> list[str]:
    """GRPO and evaluation keep what they leave in the ablation's own folder."""
    own = [f"grpo.folder={ablation.folder}/grpo", f"evaluate.folder={ablation.folder}/evaluate", "evaluate.arms=[rl]"]
    return [*ablation.words, *own]


def ablation_stages(ablation: Ablation, stages: Iterable[Stage]) -> list[Stage]:
    """Of the demo's `stages`, GRPO and evaluation, under names of their own."""
    by_name = {stage.name: stage for stage in stages}
    grpo, evaluate = by_name["grpo"], by_name["evaluate"]
    trained = replace(
        grpo,
        name=f"{grpo.name}_{ablation.name}",
        says=ablation.says,
        outputs=tuple(f"{ablation.folder}/{output}" for output in grpo.outputs),
    )
    asked = replace(
        evaluate,
        name=f"{evaluate.name}_{ablation.name}",
        says="ask it the same questions",
        needs=("dataset", "sft", trained.name),
        outputs=tuple(f"{ablation.folder}/{output}" for output in evaluate.outputs),
    )
    return [trained, asked]
