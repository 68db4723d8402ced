"""The arms of an evaluation: which weights, played under which policy. Imports nothing heavy.

An arm's policy is a `PolicyFactory` of workflows/evaluate/policies.py that wraps the engine; none is the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.agent.prompts import PRESETS

# Where a run's stages leave their models, by the name that arms and `mmsearch ask --checkpoint` use; GRPO's where
# grpo.folder is as it is by default.
WEIGHTS = {"base": "base", "sft": "sft/export", "rl": "grpo/export"}
MADE_BY = {"base": "pretrain", "sft": "sft", "rl": "grpo"}  # the command


@dataclass(frozen=True)
class Arm:
    name: str
    weights: str  # a key of WEIGHTS
    policy: str  # a key of POLICIES; "" for the model as it is
    says: str  # for the table's reader


ARMS = {
    arm.name: arm
    for arm in (
        Arm("direct", "sft", "direct", "SFT weights without tools: what would search is made to answer"),
        Arm("direct_base", "base", "direct", "the base model without tools"),
        Arm("rag", "sft", "rag", "SFT weights, always: whole-image search, text search, answer"),
        Arm("rag_rl", "rl", "rag", "RL weights, always: whole-image search, text search, answer"),
        Arm("rag_crop", "sft", "rag_crop", "SFT weights, always: crop search, text search, answer"),
        Arm("rag_crop_rl", "rl", "rag_crop", "RL weights, always: crop search, text search, answer"),
        Arm("prompted", "base", "", "base model under the protocol's prompt, never trained to search"),
        Arm("sft", "sft", "", "SFT weights, searching as they like"),
        Arm("rl", "rl", "", "RL weights, searching as they like"),
    )
}

POLICIES = {
    "direct": "workflows.evaluate.policies.direct",
    "rag": "workflows.evaluate.policies.rag",
    "rag_crop": "workflows.evaluate.policies.rag_crop",
}
_PRESETS_OWN = {("rag", "mmsearch_r1"): "workflows.evaluate.policies.rag_mmsearch_r1"}  # another tag for whole images


def policy_path(arm: Arm, preset: str) -> str | None:
    """The dotted path of an arm's policy under a protocol preset; None for the model as it is."""
    return _PRESETS_OWN.get((arm.policy, preset)) or (POLICIES[arm.policy] if arm.policy else None)


def missing_in(arm: Arm, preset: str) -> str:
    """What an arm needs that a protocol preset does not have; "" where it can be played."""
    if arm.policy == "rag_crop" and not PRESETS[preset].grammar.crops:
        return "searches for parts of a picture"
    return ""
