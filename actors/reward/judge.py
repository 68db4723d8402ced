"""Judged accuracy: a model says whether an answer is right.

Always true: a verdict is kept by everything that it depends on and never asked for twice; a verdict that could not be
had or read is unknown, never "wrong", and is asked for again next time.

It lies beside the reward's other measures of accuracy, because the papers use the same judge for rewards; it is no
actor, because one process of waiting coroutines is as much as an endpoint can be asked. What it asks goes through a
`JudgeModel`; endpoint, quota, retries and deadlines are behind that (workflows/evaluate/judge_endpoint.py).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from actors.agent.seams import ImageMissing, ImageStore
from actors.agent.trajectory import ImageRef
from actors.reward.judge_rules import RULES, Verdict, read_verdict
from actors.reward.settings import JudgeSettings
from cluster.storage import Folder

KEPT = "verdicts.json"
KEEP_EVERY = 50  # verdicts; so that a run that is killed has not asked for nothing
FAILURES_IN_A_ROW = 20  # then the endpoint is not asked any more
_MAGIC = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp",
    b"BM": "image/bmp", b"II*\x00": "image/tiff", b"MM\x00*": "image/tiff",
}  # fmt: skip


class Unanswered(Exception):
    """The model did not answer. `final`: nor will it, whatever else it is asked: no key, no credit, a spent budget."""

    def __init__(self, says: str, *, final: bool = False) -> None:
        super().__init__(says)
        self.says, self.final = says, final


class JudgeModel(Protocol):
    """A model that can be asked, wherever it is."""

    async def say(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Its answer to `messages`, as OpenAI's API has them. Raises Unanswered and nothing else, in bounded time."""
        ...


@dataclass(frozen=True)
class Case:
    """An answer to be judged. `answers`: gold answers, any of which is right; at least one."""

    question: str
    answers: tuple[str, ...]
    prediction: str
    images: tuple[ImageRef, ...] = ()


class Judge:
    """One judge under one rule. `folder` keeps its verdicts, `images` holds the pictures of the questions."""

    def __init__(self, settings: JudgeSettings, model: JudgeModel, images: ImageStore, folder: Folder) -> None:
        if settings.model is None:
            raise ValueError("no model to judge with")
        self._settings, self._model, self._images, self._folder = settings, model, images, folder
        self._rule = RULES[settings.prompt]
        self._known = _read(folder)
        self._failures, self._new = 0, 0
        self._hopeless = ""  # why nothing more is asked
        self._writing = asyncio.Lock()
        self.asked = 0  # cases of which the model was asked

    @property
    def sends(self) -> str:
        """What of a case leaves the machine, in words."""
        return "questions, gold answers, answers" + (" and pictures" if self._rule.sees_images else "")

    def missing(self, cases: Sequence[Case]) -> int:
        """How many of these would be asked for."""
        return len({key for case in cases if (key := self._identity(case)) not in self._known})

    async def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """In the order of the cases; the same case is asked once. Raises nothing that an endpoint did."""
        places = asyncio.Semaphore(self._settings.concurrency)
        wanted = {self._identity(case): case for case in cases}
        found = {key: self._known[key] for key in wanted if key in self._known}

        async def one(key: str) -> None:
            async with places:
                found[key] = await self._asked(wanted[key])
            await self._keep(key, found[key])

        try:
            await asyncio.gather(*(one(key) for key in wanted if key not in found))
        finally:
            if self._new:
                self._write()
        return [found[self._identity(case)] for case in cases]

    # --- one verdict --------------------------------------------------------------------------------------------

    async def _asked(self, case: Case) -> Verdict:
        if self._hopeless:
            return Verdict(None, f"not asked: {self._hopeless}")
        try:
            messages = self._messages(case)
            self.asked += 1
            said = await self._model.say(messages)
        except ImageMissing as error:
            return Verdict(None, f"a picture is missing: {error}")
        except Unanswered as error:
            return self._failed(error)
        self._failures = 0
        return read_verdict(self._rule, said)

    def _messages(self, case: Case) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        if self._rule.sees_images:
            parts += [{"type": "image_url", "image_url": {"url": self._url(ref)}} for ref in case.images]
        parts.append({"type": "text", "text": self._rule.ask(case.question, case.answers, case.prediction)})
        return [{"role": "user", "content": parts}]

    def _url(self, ref: ImageRef) -> str:
        data = self._images.get(ref)
        mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), "image/png")
        return f"data:{mime};base64,{base64.b64encode(data).decode()}"

    def _failed(self, error: Unanswered) -> Verdict:
        """There is no verdict; a refusal of everything, or failures without end, end the asking."""
        self._failures += 1
        if error.final:
            self._hopeless = self._hopeless or error.says
        elif self._failures >= FAILURES_IN_A_ROW:
            self._hopeless = self._hopeless or f"{self._failures} failures in a row, the last: {error.says}"
        return Verdict(None, error.says)

    # --- what is kept -------------------------------------------------------------------------------------------

    def _identity(self, case: Case) -> str:
        """Of everything that a verdict depends on, in hex."""
        seen = [ref.sha256 for ref in case.images] if self._rule.sees_images else []
        parts = [self._settings.model, self._settings.prompt.value, self._rule.version, seen]
        text = json.dumps([*parts, case.question, case.answers, case.prediction])
        return hashlib.sha256(text.encode()).hexdigest()

    async def _keep(self, key: str, verdict: Verdict) -> None:
        if verdict.right is None:
            return
        self._known[key] = verdict
        self._new += 1
        if self._new >= KEEP_EVERY and not self._writing.locked():
            async with self._writing:
                self._new = 0
                await asyncio.to_thread(self._write)

    def _write(self) -> None:
        self._folder.write_json(KEPT, {key: asdict(verdict) for key, verdict in list(self._known.items())})


def _read(folder: Folder) -> dict[str, Verdict]:
    """Verdicts by identity; none from a file that cannot be read, which is then written anew."""
    try:
        return {key: Verdict(bool(kept["right"]), str(kept["says"])) for key, kept in folder.read_json(KEPT).items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}
