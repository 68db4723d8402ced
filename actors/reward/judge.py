"""Judged accuracy: a model behind any OpenAI-compatible endpoint says whether an answer is right.

Always true: a verdict is kept by everything that it depends on and never asked for twice; a verdict that could not be
had or read is unknown, never "wrong", and is asked for again next time. The key comes from the environment alone and
is never told, not even when an endpoint quotes it.

It lies beside the reward's other measures of accuracy, because the papers use the same judge for rewards; it is no
actor, because one process of waiting coroutines is as much as an endpoint can be asked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from actors.agent.seams import ImageMissing, ImageStore
from actors.agent.trajectory import ImageRef
from actors.reward.judge_rules import RULES, Verdict, read_verdict
from actors.reward.settings import JudgeSettings
from cluster.errors import UserError
from cluster.storage import Folder

KEPT = "verdicts.json"
KEEP_EVERY = 50  # verdicts; so that a run that is killed has not asked for nothing
LONGEST_WAIT_S = 8.0  # between attempts: the openai package's own bound
FAILURES_IN_A_ROW = 20  # then the endpoint is not asked any more
MAX_TOKENS = 1024  # of a verdict, a reasoning model's thought included
_MAGIC = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp",
    b"BM": "image/bmp", b"II*\x00": "image/tiff", b"MM\x00*": "image/tiff",
}  # fmt: skip
# The endpoint will refuse whatever else it is asked.
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


@dataclass(frozen=True)
class Case:
    """An answer to be judged. `answers`: gold answers, any of which is right; at least one."""

    question: str
    answers: tuple[str, ...]
    prediction: str
    images: tuple[ImageRef, ...] = ()


class Judge:
    """One judge under one rule. `folder` keeps its verdicts, `images` holds the pictures of the questions."""

    def __init__(self, settings: JudgeSettings, images: ImageStore, folder: Folder) -> None:
        """Raise `UserError` when the key is not in the environment."""
        if settings.model is None:
            raise ValueError("no model to judge with")
        self._settings, self._model, self._images, self._folder = settings, settings.model, images, folder
        self._rule = RULES[settings.prompt]
        self._key = _key(settings)
        self._known = _read(folder)
        self._failures, self._new = 0, 0
        self._hopeless = ""  # why nothing more is asked
        self._writing = asyncio.Lock()
        self.asked = 0  # of the endpoint, retries apart

    @property
    def sends(self) -> str:
        """What of a case leaves the machine, in words."""
        return "questions, gold answers, answers" + (" and pictures" if self._rule.sees_images else "")

    @property
    def endpoint(self) -> str:
        """Where it goes, free of what may be secret in an address."""
        with_defaults = openai.OpenAI(api_key=self._key, base_url=self._settings.base_url)
        parts = urlsplit(str(with_defaults.base_url))
        with_defaults.close()
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"

    def missing(self, cases: Sequence[Case]) -> int:
        """How many of these would be asked for."""
        return len({key for case in cases if (key := self._identity(case)) not in self._known})

    async def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """In the order of the cases; the same case is asked once. Raises nothing that an endpoint did."""
        places = asyncio.Semaphore(self._settings.concurrency)
        wanted = {self._identity(case): case for case in cases}
        found = {key: self._known[key] for key in wanted if key in self._known}
        async with openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._settings.base_url,
            timeout=self._settings.timeout_s,
            max_retries=self._settings.retries,
        ) as client:

            async def one(key: str) -> None:
                async with places:
                    found[key] = await self._asked(client, wanted[key])
                await self._keep(key, found[key])

            try:
                await asyncio.gather(*(one(key) for key in wanted if key not in found))
            finally:
                if self._new:
                    self._write()
        return [found[self._identity(case)] for case in cases]

    # --- one verdict --------------------------------------------------------------------------------------------

    async def _asked(self, client: openai.AsyncOpenAI, case: Case) -> Verdict:
        if self._hopeless:
            return Verdict(None, f"not asked: {self._hopeless}")
        attempts = self._settings.retries + 1
        try:
            messages = self._messages(case)
            self.asked += 1
            async with asyncio.timeout(attempts * self._settings.timeout_s + (attempts - 1) * LONGEST_WAIT_S):
                answer = await client.chat.completions.create(
                    model=self._model, messages=messages, temperature=0.0, max_completion_tokens=MAX_TOKENS
                )
            verdict = read_verdict(self._rule, answer.choices[0].message.content or "")
        except ImageMissing as error:
            return Verdict(None, f"a picture is missing: {error}")
        except (openai.OpenAIError, TimeoutError) as error:
            return self._failed(error)
        except (ValueError, TypeError, AttributeError, IndexError):  # an answer that is no chat completion
            return self._failed(ValueError("the endpoint's answer is no chat completion"))
        self._failures = 0
        return verdict

    def _messages(self, case: Case) -> Any:
        parts: list[dict[str, Any]] = []
        if self._rule.sees_images:
            parts += [{"type": "image_url", "image_url": {"url": self._url(ref)}} for ref in case.images]
        parts.append({"type": "text", "text": self._rule.ask(case.question, case.answers, case.prediction)})
        return [{"role": "user", "content": parts}]

    def _url(self, ref: ImageRef) -> str:
        data = self._images.get(ref)
        mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), "image/png")
        return f"data:{mime};base64,{base64.b64encode(data).decode()}"

    def _failed(self, error: Exception) -> Verdict:
        """There is no verdict; a refusal of everything, or failures without end, end the asking."""
        said = self._told(error)
        self._failures += 1
        if isinstance(error, _HOPELESS):
            self._hopeless = self._hopeless or said
        elif self._failures >= FAILURES_IN_A_ROW:
            self._hopeless = self._hopeless or f"{self._failures} failures in a row, the last: {said}"
        return Verdict(None, said)

    def _told(self, error: Exception) -> str:
        if isinstance(error, openai.AuthenticationError):  # endpoints quote keys in it
            return "the endpoint refused the key (401)"
        if isinstance(error, openai.APITimeoutError | TimeoutError):
            return f"no verdict within {self._settings.timeout_s:g} s"
        said = " ".join(str(error).split())[:300].replace(self._key, "***")
        return f"{type(error).__name__}: {said}"

    # --- what is kept -------------------------------------------------------------------------------------------

    def _identity(self, case: Case) -> str:
        """Of everything that a verdict depends on, in hex."""
        seen = [ref.sha256 for ref in case.images] if self._rule.sees_images else []
        parts = [self._model, self._settings.prompt.value, self._rule.version, seen]
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


def _key(settings: JudgeSettings) -> str:
    if not settings.api_key_env:
        return "none"  # the client wants one; endpoints without keys ignore it
    key = os.environ.get(settings.api_key_env, "")
    if not key:
        raise UserError(
            f"The judge's key is to be in the environment variable {settings.api_key_env}, which is not set;"
            " for an endpoint that wants none, set evaluate.judge.api_key_env to nothing."
        )
    return key


def _read(folder: Folder) -> dict[str, Verdict]:
    """Verdicts by identity; none from a file that cannot be read, which is then written anew."""
    try:
        return {key: Verdict(bool(kept["right"]), str(kept["says"])) for key, kept in folder.read_json(KEPT).items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}
