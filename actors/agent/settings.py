"""Which protocol an agent follows, and the bounds of its episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS, RETURNING_CROPS, Preset


@dataclass(frozen=True)
class AgentSettings:
    preset: str = "extended"
    # mmsearch_r1 | deepmmsearch_r1 | extended | compact | compact_whole; see actors/agent/prompts.py
    return_crops: bool = False
    # show the model what was cut out of a picture, as a further picture that it can search and cut; the presets that
    # can name it are extended and compact
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        choices = [name for name, preset in PRESETS.items() if not preset.return_crops]
        if self.preset not in choices:
            raise ValueError(f"preset is {self.preset!r} and must be one of {', '.join(choices)}")
        if self.return_crops and self.preset not in RETURNING_CROPS:
            raise ValueError(
                f"return_crops is true, but under preset {self.preset} nothing can be done with a crop;"
                f" it is for {' and '.join(RETURNING_CROPS)}"
            )

    @property
    def protocol(self) -> Preset:
        """The preset that episodes are played under; its name stands for it wherever a preset is named."""
        return RETURNING_CROPS[self.preset] if self.return_crops else PRESETS[self.preset]
