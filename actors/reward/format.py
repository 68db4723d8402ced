"""Whether a whole episode kept to the protocol, by the same grammar that carries its actions out."""

from __future__ import annotations

from actors.agent.prompts import Preset
from actors.agent.protocol import Answer, parse_turn
from actors.agent.trajectory import SegmentKind, Trajectory


def well_formed(trajectory: Trajectory, preset: Preset) -> bool:
    """Whether every turn is one `<reason>` and one action, and the last action, and no other, is an answer.

    The episode's own verdict counts too: it knows of calls that were refused. Any order of allowed tools is legal;
    MMSearch-R1's code knows four paths and marks a second text search, which its limits allow, as malformed.
    """
    turns = [
        parse_turn(segment.text, preset.grammar)
        for segment in trajectory.segments
        if segment.kind is SegmentKind.ACTION
    ]
    if not trajectory.format_ok or not 1 <= len(turns) <= preset.max_turns:
        return False
    answers = [isinstance(turn.action, Answer) for turn in turns]
    return all(turn.well_formed for turn in turns) and answers[-1] and not any(answers[:-1])
