"""`mmsearch ask --url`: the same question to a running service, through OpenAI's own client, its steps as they happen.

    GET /v1/models  ->  POST /v1/chat/completions, streamed  ->  StepLines, and the document that `ask` prints locally

Always true: what the service sends is text to be shown, never trusted to have its documented shape; every wait has an
end; whatever goes wrong is one sentence, a `UserError` where the person can mend it and a `RunBroken` where the service
failed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from actors.agent.prompts import gave_up
from actors.agent.trajectory import Ending, Failure, Question
from cluster.errors import RunBroken, UserError
from workflows.serve.settings import is_loopback
from workflows.steps import StepLines

KEY_ENV = "MMSEARCH_API_KEY"
CONNECT_S = 10.0
SILENT_S = 60.0  # without a byte; a service that is at work says so every 10 s
LONGEST_S = 3600.0  # a whole answer; services have bounds of their own, which are far below
SAID_CHARS = 300  # of what a service says of an error
_CITATION = re.compile(r"\s*\[(\d{1,3})\]")
_ANSWERED = ("stop", "max_tool_calls", "max_cost")  # the last two: searching was cut off, the answer was not
_UNANSWERED = {"length": Ending.OUT_OF_TOKENS, "max_turns": Ending.OUT_OF_TURNS}  # of others the reason itself is told


@dataclass(frozen=True)
class Service:
    """Where a service is, and how one comes in. `key_env`: where the key came from, or would."""

    url: str  # without /v1
    key: str = field(default="", repr=False)
    key_env: str = KEY_ENV


def service_at(url: str, key_env: str | None = None) -> Service:
    """The service that a person names. Raises `UserError` for an address that is none, or a named key that is not set.

    `key_env`: the environment variable with the key; by default `KEY_ENV`, which need not be set.
    """
    base = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        _ = parts.port  # raises for one that is no number
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--url is {url!r} and must be a service's address, as http://127.0.0.1:8000.")
    key = os.environ.get(key_env or KEY_ENV, "").strip()
    if key_env is not None and not key:
        raise UserError(f"--key-env names ${key_env}, which is not set.")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"The key in ${key_env or KEY_ENV} has characters that no key has.")
    return Service(base, key, key_env or KEY_ENV)


def answered_by(service: Service, question: Question, pictures: Sequence[bytes], lines: StepLines) -> dict[str, Any]:
    """Ask, print the steps as they come, and return the episode as `workflows.steps.document` has it, as far as known.

    Raises `UserError` and `RunBroken`.
    """
    return asyncio.run(_answered_by(service, question, pictures, lines))


async def _answered_by(
    service: Service, question: Question, pictures: Sequence[bytes], lines: StepLines
) -> dict[str, Any]:
    import openai

    began = time.monotonic()
    episode = StreamedEpisode(lines)
    timeout = openai.Timeout(SILENT_S, connect=CONNECT_S)
    # a proxy of the environment leads out of this machine, not back into it
    own = openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(urlsplit(service.url).hostname or ""))
    client = openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=service.key or "none", max_retries=0, timeout=timeout, http_client=own
    )
    try:
        async with asyncio.timeout(LONGEST_S), client:
            model = (await client.models.list()).data[0].id
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content_of(question.text, pictures)}],  # type: ignore[typeddict-item]
                stream=True,
                stream_options={"include_usage": True},
                temperature=0.0,
            )
            async for chunk in stream:
                episode.read(chunk.to_dict())
    except TimeoutError:
        raise RunBroken(f"{service.url} did not end its answer within {LONGEST_S / 60:g} minutes.") from None
    except openai.OpenAIError as error:
        raise failure_of(error, service, heard=episode.heard) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunBroken(
            f"{service.url} answers in a way that this command does not understand: {_words(error)}."
        ) from error
    if not episode.finish_reason:
        raise _broken_off(service)
    return episode.document(question, f"{model} at {service.url}", time.monotonic() - began)


def content_of(text: str, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """The parts of the message: pictures, then the question."""
    shown = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in pictures]
    return [*shown, {"type": "text", "text": text}]


def data_url(picture: bytes) -> str:
    """A picture as it travels in a request."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        media = opened.get_format_mimetype() or "application/octet-stream"
    return f"data:{media};base64,{base64.b64encode(picture).decode('ascii')}"


class StreamedEpisode:
    """An episode out of the chunks of its stream, told to `lines` step by step."""

    def __init__(self, lines: StepLines) -> None:
        self._lines = lines
        self._reason = self._problem = ""
        self._open = False  # a turn whose action is not known yet
        self._found: dict[int, dict[str, Any]] = {}  # evidence by number
        self._cited: list[int] = []
        self._notices: list[str] = []  # which come before the end of the turn that they are about
        self._last: dict[str, Any] = {}  # the choice that ended it
        self._usage: dict[str, Any] = {}
        self.content = ""
        self.finish_reason = ""
        self.heard = False

    def read(self, chunk: Mapping[str, Any]) -> None:
        """The next chunk. Raises ValueError, LookupError, TypeError or AttributeError for what is not documented."""
        self.heard = True
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self._reason += delta.get("reasoning_content") or ""
            self.content += delta.get("content") or ""
            for annotation in delta.get("annotations") or ():
                self._cite(annotation["url_citation"])
            if step := choice.get("search_step"):
                self._step(step)
            if choice.get("finish_reason"):
                self.finish_reason, self._last = str(choice["finish_reason"]), choice
                self._act({"answer": self.answer, "citations": self._cited} if self.answer is not None else None)
                for words in self._notices:
                    self._lines.notice(words)

    @property
    def answer(self) -> str | None:
        """Without its citations, as an episode's answer is; None where the content says why there is none."""
        words = " ".join(_CITATION.sub(" ", self.content).split())
        return words if self.finish_reason in _ANSWERED and not gave_up(words) else None

    def document(self, question: Question, model: str, seconds: float) -> dict[str, Any]:
        """As `workflows.steps.document`, with what a service tells beside it."""
        answer, policy = self.answer, self.finish_reason in _UNANSWERED
        results = [step["result"] for step in self._lines.steps if "result" in step]
        return {
            "question": question.text,
            "images": [{"sha256": ref.sha256, "width": ref.width, "height": ref.height} for ref in question.images],
            "model": model,
            "answer": answer,
            "ending": self._ending(),
            "failure": (Failure.POLICY if policy else Failure.NONE).value,
            "problem": "" if answer is not None else self.content,
            "evidence": [self._found[number] for number in self._cited if number in self._found],
            "steps": self._lines.steps,
            "searches": int(self._usage.get("tool_calls", len(results))),
            "sampled_tokens": int(self._usage.get("completion_tokens", 0)),
            "seconds": round(seconds, 3),
            "finish_reason": self.finish_reason,
            "cost_usd": self._usage.get("cost_usd"),
            "weights_version": self._last.get("weights_version"),
            "search_unavailable": bool(self._last.get("search_unavailable")),
        }

    def _ending(self) -> str:
        if self.finish_reason in _ANSWERED:
            return (Ending.ANSWERED if self.answer is not None else Ending.GAVE_UP).value
        known = _UNANSWERED.get(self.finish_reason)
        return self.finish_reason if known is None else known.value

    def _step(self, step: Mapping[str, Any]) -> None:
        kind = step["type"]
        if kind == "turn":
            self._act(None)
            self._lines.turn(int(step["number"]))
            self._open, self._reason, self._problem = True, "", ""
        elif kind == "problem":
            self._problem = str(step["message"])  # of a search that is carried out all the same it comes first
        elif kind == "search":
            self._act({name: value for name, value in step.items() if name not in ("type", "turn")})
        elif kind == "result":
            self._act(None)
            self._result({name: value for name, value in step.items() if name not in ("type", "turn", "thumbnails")})
        elif kind == "notice":
            self._notices.append(str(step["message"]))

    def _act(self, action: Mapping[str, Any] | None) -> None:
        """The turn that is open has done this; None where it could do nothing."""
        if self._open:
            self._open = False
            self._lines.action(self._reason.strip(), action, self._problem)

    def _result(self, result: dict[str, Any]) -> None:
        self._lines.result(result)
        for item in result["evidence"]:
            self._found[int(item["number"])] = item

    def _cite(self, citation: Mapping[str, Any]) -> None:
        mark = _CITATION.fullmatch(self.content[int(citation["start_index"]) : int(citation["end_index"])])
        if mark is not None and int(mark[1]) not in self._cited:
            self._cited.append(int(mark[1]))


def failure_of(error: Exception, service: Service, *, heard: bool) -> UserError | RunBroken:
    """What an error of the client means to the person. `heard`: a part of the answer had come."""
    import openai

    where = service.url
    if isinstance(error, openai.APIConnectionError) and heard:
        return _broken_off(service)
    if isinstance(error, openai.APITimeoutError):
        return RunBroken(f"{where} did not answer within {SILENT_S:g} s.")
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"Nobody answers at {where}: start the service with `mmsearch serve`, or mend --url.")
    if isinstance(error, openai.AuthenticationError):
        if not service.key:
            return UserError(f"{where} wants a key: put yours into ${service.key_env}, or name another with --key-env.")
        return UserError(f"{where} does not know the key in ${service.key_env}.")
    if isinstance(error, openai.RateLimitError) and error.code != "insufficient_quota":
        after = error.response.headers.get("retry-after", "")
        when = f"in {after} s" if after.isdecimal() else "later"
        return RunBroken(f"{where} takes no more now: ask again {when} ({_words(error)}).")
    if isinstance(error, openai.APIStatusError):
        if error.status_code >= 500:
            return RunBroken(f"{where} failed ({error.status_code}): {_words(error)}.")
        if error.status_code == 404 and error.code is None:
            return UserError(f"There is no service of this kind at {where}: `mmsearch serve` prints its address.")
        return UserError(f"{where} refuses this ({error.status_code}): {_words(error)}.")
    return RunBroken(f"{where} failed while it answered: {_words(error)}.")


def _broken_off(service: Service) -> RunBroken:
    return RunBroken(f"The answer of {service.url} broke off before its end: ask again.")


def _words(error: Exception) -> str:
    """What the service says of it: text of others, so one line, and not all of a page."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    words = " ".join(str(said or getattr(error, "message", error)).split())
    return "".join(c for c in words if c.isprintable())[:SAID_CHARS].rstrip(". ")
