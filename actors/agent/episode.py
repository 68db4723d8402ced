"""One episode: the turn loop that makes SFT data, rollouts, evaluation arms, the shell's `ask` and the service.

    open -> [ generate -> parse -> (answer: end) | (tool: call -> observe) | (malformed: complain -> observe) ] ...

Always true: segments are only appended; what was sampled stays as it was sampled; a failure has an owner (policy, data,
infra), decided at the one boundary below; every wait has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.agent.prompts import Preset, gave_up, renumber
from actors.agent.protocol import Answer, ImageSearch, TextSearch, Turn, parse_turn
from actors.agent.seams import (
    Clock,
    GenerationFailed,
    Generator,
    ImageMissing,
    ImageRefused,
    Observer,
    Renderer,
    Sampling,
    Toolbox,
)
from actors.agent.trajectory import (
    Ending,
    Failure,
    ImageRef,
    Outcome,
    Question,
    Segment,
    SegmentKind,
    Tool,
    ToolCall,
    ToolRequest,
    ToolResult,
    Trajectory,
)

TOO_LONG = "the question alone does not fit into the episode"  # why a question failed


@dataclass(frozen=True)
class Limits:
    """Bounds of one episode. Token counts are expanded lengths."""

    max_total_tokens: int = 8192  # prompt, actions and observations together; at most the engine's max_model_len
    max_turn_tokens: int = 1024  # sampled in one turn
    turn_timeout_s: float = 120.0
    tool_timeout_s: float = 60.0
    episode_timeout_s: float = 600.0
    grace_s: float = 30.0  # beyond that, for an engine or a tool that overran its own deadline; then it is given up

    @property
    def longest_s(self) -> float:
        """By then an episode has ended, whatever hangs."""
        return self.episode_timeout_s + self.grace_s


def _silent(event: str, detail: dict[str, Any]) -> None:
    """Nobody watches."""


async def run_episode(
    question: Question,
    sample_index: int,
    preset: Preset,
    generator: Generator,
    renderer: Renderer,
    toolbox: Toolbox,
    *,
    sampling: Sampling,
    limits: Limits,
    clock: Clock,
    observer: Observer = _silent,
    max_images: int | None = None,
) -> Trajectory:
    """Play one episode to its end. Raises only when cancelled or when there is a bug in this code.

    `max_images`: what the engine takes in one sequence, the question's included; what tools bring beyond is not shown.
    """
    episode = _Episode(question, sample_index, preset, renderer, limits, clock, observer, max_images)
    backstop = asyncio.timeout(limits.longest_s)
    try:
        async with backstop:
            await episode.play(generator, toolbox, sampling)
    except TimeoutError:
        if not backstop.expired():
            raise
        episode.end(Ending.FAILED, Failure.INFRA, "an engine or a tool went on after its deadline")
    except GenerationFailed as error:
        episode.end(Ending.FAILED, Failure.INFRA, str(error))
    except (ImageMissing, ImageRefused) as error:
        episode.end(Ending.FAILED, Failure.DATA, str(error))
    return episode.trajectory()


class _Episode:
    """The growing state of one episode."""

    def __init__(
        self,
        question: Question,
        sample_index: int,
        preset: Preset,
        renderer: Renderer,
        limits: Limits,
        clock: Clock,
        observer: Observer,
        max_images: int | None,
    ) -> None:
        self.question, self.sample_index, self.preset = question, sample_index, preset
        self.renderer, self.limits, self.clock, self.tell = renderer, limits, clock, observer
        self.max_images = max_images
        self.started = clock()
        self.segments: list[Segment] = []
        self.calls: list[ToolCall] = []
        self.bank: list[ImageRef] = list(question.images)  # every image that the policy may search, in order shown
        self.ending: Ending | None = None
        self.failure = Failure.NONE
        self.problem = ""
        self.answer: Answer | None = None
        self.clumsy = False  # some turn was not well-formed

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def play(self, generator: Generator, toolbox: Toolbox, sampling: Sampling) -> None:
        opening = self.preset.open(self.question.text, len(self.question.images))
        prompt = self.renderer.open(opening, self.question.images)
        if prompt.expanded_length >= self.limits.max_total_tokens:
            self.end(Ending.FAILED, Failure.DATA, TOO_LONG)
            return
        self.append(prompt)
        for number in range(1, self.preset.max_turns + 1):
            turn = await self.turn(generator, sampling, number)
            if turn is None:
                return
            if isinstance(turn.action, Answer):
                self.answer = turn.action
                self.end(Ending.GAVE_UP if gave_up(turn.action.text) else Ending.ANSWERED)
                return
            if number == self.preset.max_turns:
                break
            if not await self.react(turn, toolbox, number):
                return
        self.end(Ending.OUT_OF_TURNS, Failure.POLICY, f"no answer within {self.preset.max_turns} turns")

    async def turn(self, generator: Generator, sampling: Sampling, number: int) -> Turn | None:
        """Sample and parse one turn; None when the episode ended instead."""
        room = self.limits.max_total_tokens - sum(segment.expanded_length for segment in self.segments)
        if room < 1:
            self.end(Ending.OUT_OF_TOKENS, Failure.POLICY, "the episode is full")
            return None
        bound = min(sampling.max_tokens, self.limits.max_turn_tokens, room)
        seed = None if sampling.seed is None else sampling.seed + number
        self.tell("turn", {"number": number})
        generation = await generator.generate(
            self.segments,
            replace(sampling, max_tokens=bound, seed=seed),
            deadline=self.deadline(self.limits.turn_timeout_s),
        )
        if generation.stop == "aborted":
            raise GenerationFailed("a turn did not finish before its deadline")
        text = self.renderer.decode(generation.token_ids)
        self.append(Segment(SegmentKind.ACTION, generation.token_ids, generation.logprobs, generation.spans, text=text))
        if self.renderer.forbidden(generation.token_ids):
            self.end(Ending.FAILED, Failure.POLICY, "the policy wrote a token that only the task may write")
            return None
        if generation.stop == "length":
            self.end(Ending.OUT_OF_TOKENS, Failure.POLICY, f"a turn did not end within {bound} tokens")
            return None
        turn = parse_turn(text, self.preset.grammar)
        self.clumsy |= not turn.well_formed
        self.problem = self.problem or turn.problem
        self.tell("action", {"reason": turn.reason, "action": turn.action, "problem": turn.problem, "text": text})
        return turn

    async def react(self, turn: Turn, toolbox: Toolbox, number: int) -> bool:
        """Carry out a turn that is not an answer and show the result. False when the episode ended instead."""
        if turn.action is None:
            return self.observe(self.preset.complaint(turn.problem))
        assert not isinstance(turn.action, Answer)
        request, refusal = self.request(turn.action)
        started = self.clock() - self.started
        if refusal:
            result = ToolResult(Outcome.POLICY_ERROR, message=refusal)
        else:
            self.tell("tool", {"request": request})
            result = await toolbox.call(request, deadline=self.deadline(self.limits.tool_timeout_s))
        numbered = renumber(result.evidence, 1 + sum(len(call.result.evidence) for call in self.calls), number)
        result = replace(result, evidence=numbered)
        self.calls.append(ToolCall(request, result, number, started))
        self.tell("result", {"request": request, "result": result})
        if result.outcome is Outcome.POLICY_ERROR:
            self.problem = self.problem or result.message
            return self.observe(self.preset.complaint(result.message))
        room = None if self.max_images is None else self.max_images - len(self.bank)
        shown = self.preset.shown(request, result, room)
        text = self.preset.information(request, shown, self.question.text, len(self.bank))
        self.bank.extend(shown.images)
        return self.observe(text, shown.images)

    # --- steps ------------------------------------------------------------------------------------------------------

    def request(self, action: TextSearch | ImageSearch) -> tuple[ToolRequest, str]:
        """The call that an action asks for, and why it is refused ("" when it is not)."""
        if isinstance(action, TextSearch):
            request = ToolRequest(Tool.TEXT_SEARCH, action.query, question=self.question.text)
            bound = self.preset.max_text_searches
        else:
            here = 1 <= action.image_number <= len(self.bank)
            request = ToolRequest(
                Tool.IMAGE_SEARCH,
                action.expression,
                image=self.bank[action.image_number - 1] if here else None,
                image_number=action.image_number,
                box=action.box,
                question=self.question.text,
                return_crop=self.preset.return_crops,
            )
            bound = self.preset.max_image_searches
            if not here:
                return request, f"there is no image {action.image_number}"
        made = [call.request.tool for call in self.calls if call.executed]
        if len(made) >= self.preset.max_tool_calls or made.count(request.tool) >= bound:
            return request, f"no {request.tool.replace('_', ' ')} left"
        return request, ""

    def observe(self, text: str, images: Sequence[ImageRef] = ()) -> bool:
        segment = self.renderer.observe(text, images)
        total = sum(s.expanded_length for s in self.segments) + segment.expanded_length
        if total >= self.limits.max_total_tokens:
            self.end(Ending.OUT_OF_TOKENS, Failure.POLICY, "what a tool returned does not fit into the episode")
            return False
        self.append(segment)
        return True

    def append(self, segment: Segment) -> None:
        self.segments.append(segment)

    def deadline(self, seconds: float) -> float:
        return min(self.clock() + seconds, self.started + self.limits.episode_timeout_s)

    def end(self, ending: Ending, failure: Failure = Failure.NONE, problem: str = "") -> None:
        self.ending, self.failure = ending, failure
        self.problem = self.problem or problem
        self.tell("end", {"ending": ending, "failure": failure, "problem": self.problem})

    def trajectory(self) -> Trajectory:
        assert self.ending is not None
        refused = any(call.result.outcome is Outcome.POLICY_ERROR for call in self.calls)
        return Trajectory(
            question_id=self.question.id,
            sample_index=self.sample_index,
            segments=tuple(self.segments),
            tool_calls=tuple(self.calls),
            ending=self.ending,
            failure=self.failure,
            answer=self.answer.text if self.answer else "",
            citations=self.answer.citations if self.answer else (),
            format_ok=self.answer is not None and not self.clumsy and not refused,
            problem=self.problem,
            seconds=self.clock() - self.started,
        )
