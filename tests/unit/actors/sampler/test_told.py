"""A turn that is told while it is sampled: as far as it has come, and without a request that is left behind."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from actors.agent.seams import Sampling
from actors.agent.trajectory import Segment, SegmentKind
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings

PROMPT = [Segment(SegmentKind.PROMPT, np.array([5, 6], dtype=np.int32))]


class OneTokenAtATime:
    """What a turn asks of vLLM: an output for each token, or with wanted="FINAL_ONLY" one for all."""

    errored = False

    def __init__(self) -> None:
        self.running: list[str] = []
        self.aborted: list[str] = []
        self.wanted = ""
        self.priorities: list[int] = []

    async def update_weight_version(self, version):
        """By having it, an engine labels tokens itself."""

    async def generate(self, prompt, parameters, request_id, *, priority):
        self.priorities.append(priority)
        self.running.append(request_id)
        self.wanted = parameters.output_kind
        try:
            for n in (1, 2, 2, 3) if self.wanted == "CUMULATIVE" else (3,):
                spans = [SimpleNamespace(version="0", start=0, end=n)]
                logprobs = SimpleNamespace(logprobs=[-1.0] * n, start_indices=list(range(n)))
                completion = SimpleNamespace(
                    token_ids=list(range(10, 10 + n)), finish_reason="stop" if n == 3 else None, logprobs=logprobs,
                    weight_versions=spans,
                )  # fmt: skip
                yield SimpleNamespace(outputs=[completion], prompt_token_ids=prompt["prompt_token_ids"])
        except GeneratorExit:
            self.aborted.append(request_id)
            raise
        finally:
            self.running.remove(request_id)

    def shutdown(self):
        pass


@pytest.fixture
def engine(monkeypatch):
    """An engine on a vLLM that is not imported: that takes seconds."""
    parts = {
        "vllm": {"SamplingParams": lambda **given: SimpleNamespace(**given)},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(CUMULATIVE="CUMULATIVE", FINAL_ONLY="FINAL_ONLY")
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": OSError, "EngineGenerateError": ArithmeticError},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    made = Engine(
        "/model", EngineSettings(), SimpleNamespace(image_token=1, end_of_turn=2), SimpleNamespace(), clock=lambda: 0.0
    )
    made._llm = OneTokenAtATime()
    return made


async def test_a_turn_is_told_whenever_it_has_grown_and_ends_as_it_would_untold(engine):
    told = []
    turn = await engine.generate(PROMPT, Sampling(), deadline=60.0, told=told.append)
    assert [ids.tolist() for ids in told] == [[10], [10, 11], [10, 11, 12]]
    assert {ids.dtype for ids in told} == {np.dtype(np.int32)}
    silent = await engine.generate(PROMPT, Sampling(), deadline=60.0)
    assert (turn.token_ids.tolist(), turn.spans, turn.stop) == (silent.token_ids.tolist(), silent.spans, silent.stop)


async def test_where_nobody_is_told_only_the_end_is_asked_for(engine):
    await engine.generate(PROMPT, Sampling(), deadline=60.0)
    assert engine._llm.wanted == "FINAL_ONLY"


async def test_who_raises_while_told_ends_the_turn_in_the_engine_too(engine):
    def refuses(ids):
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await engine.generate(PROMPT, Sampling(), deadline=60.0, told=refuses)
    assert (engine._llm.running, engine._llm.aborted) == ([], ["turn-0"])


async def test_the_turn_with_the_longer_history_comes_first(engine):
    longer = [*PROMPT, Segment(SegmentKind.OBSERVATION, np.array([7], dtype=np.int32))]
    for history in (PROMPT, longer):
        await engine.generate(history, Sampling(), deadline=60.0)
    first, later = engine._llm.priorities
    assert later < first, "of vLLM's priorities the least comes first"
