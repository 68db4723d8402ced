"""Which protocol an agent follows, and the bounds of its episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS, Preset


@dataclass(frozen=True)
class AgentSettings:
    preset: str = "extended"
    # mmsearch_r1 | deepmmsearch_r1 | extended | compact | compact_whole; see actors/agent/prompts.py
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r} and must be one of {', '.join(PRESETS)}")

    @property
    def protocol(self) -> Preset:
        return PRESETS[self.preset]
