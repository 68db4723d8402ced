"""One chat completion at any OpenAI-compatible endpoint, a vLLM of one's own among them.

Always true: a `say` is one request and none is repeated, which is the business of who asks; its tokens, and their
price where one is given, are told to the meter; what goes wrong is a ProviderError of a kind. The key comes from the
environment alone and is never told, not even when an endpoint quotes it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from actors.agent.untrusted import one_line
from actors.search import metering
from actors.search.evidence import bounded
from actors.search.providers.http import kind_of, retry_after
from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError

MAX_TOLD = 300  # characters of an endpoint's words in an error
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


@dataclass(frozen=True)
class Said:
    """What a model wrote, its thoughts included, and why it ended: "stop", "length", ..."""

    text: str
    finish: str


class ChatEndpoint:
    """One model at one endpoint. For one event loop."""

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_env: str = "OPENAI_API_KEY",
        max_tokens: int = 512,
        temperature: float | None = 0.0,
        timeout_s: float = 30.0,
        usd_per_million_in: float = 0.0,
        usd_per_million_out: float = 0.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """`model`: its name at the endpoint; `base_url`: None is the openai package's own default.

        `key_env`: the variable that holds the key, "" where the endpoint wants none. `max_tokens` of an answer, a
        reasoning model's thought included; `temperature` None for models that take none; `timeout_s` of the one
        request; prices in USD per million tokens; `extra_body`: what else the endpoint takes, as vLLM's
        `{chat_template_kwargs: {enable_thinking: false}}`. Raises UserError for values that make no sense.
        """
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise UserError("The base_url of a chat endpoint must begin with http:// or https://.")
        if not model or max_tokens < 1 or not timeout_s > 0:
            raise UserError("A chat endpoint needs a model, and max_tokens and timeout_s above 0.")
        self._model, self._base_url, self._key_env = model, base_url, key_env
        self._max_tokens, self._temperature, self._timeout_s = max_tokens, temperature, timeout_s
        self._extra_body = dict(extra_body or {})
        self._usd_in, self._usd_out = usd_per_million_in / 1e6, usd_per_million_out / 1e6
        self._client: openai.AsyncOpenAI | None = None

    @property
    def address(self) -> str:
        """Where it goes, free of what may be secret in an address."""
        with_defaults = openai.OpenAI(api_key="none", base_url=self._base_url)
        parts = urlsplit(str(with_defaults.base_url))
        with_defaults.close()
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"

    async def say(self, messages: Sequence[Mapping[str, Any]]) -> Said:
        """The model's answer to `messages`, as OpenAI's API has them. Raises ProviderError; none holds the key."""
        answer, problem = await self._asked(messages)
        if problem is not None:
            raise problem  # outside the handler, so that it carries no request and no header with it
        return self._said(answer)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the client, which holds the key."""
        return {**self.__dict__, "_client": None}

    # --- the request --------------------------------------------------------------------------------------------

    async def _asked(self, messages: Any) -> tuple[Any, ProviderError | None]:
        """The endpoint's answer, or why there is none."""
        client, key = self._connected()
        options: dict[str, Any] = {} if self._temperature is None else {"temperature": self._temperature}
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await client.chat.completions.create(
                    model=self._model,
                    messages=messages,
                    max_completion_tokens=self._max_tokens,
                    extra_body=self._extra_body or None,
                    **options,
                )
        except TimeoutError:
            return None, ProviderError(ErrorKind.TRANSIENT, f"no answer within {self._timeout_s:g} s")
        except openai.OpenAIError as error:
            return None, _problem(error, key)
        except ValueError:  # a body that says it is JSON and is not
            return None, ProviderError(ErrorKind.SCHEMA, "the endpoint's answer is no JSON")
        return answer, None

    def _connected(self) -> tuple[openai.AsyncOpenAI, str]:
        key = os.environ.get(self._key_env, "") if self._key_env else "none"  # the client wants one
        if not key:
            message = (
                f"the key of a chat endpoint is to be in the environment variable {self._key_env}, which is not set"
            )
            raise ProviderError(ErrorKind.BAD_KEY, message, sent=False)
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                api_key=key,
                base_url=self._base_url,
                timeout=self._timeout_s,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),  # one request is one request
            )
        return self._client, key

    def _said(self, answer: Any) -> Said:
        """Tells the meter what the answer used, also one without use."""
        error = getattr(answer, "error", None)
        if error and not getattr(answer, "choices", None):
            raise _problem_in_body(error)  # some endpoints answer 200 and mean an error
        self._meter(getattr(answer, "usage", None))
        try:
            choice = answer.choices[0]
            content, refusal = choice.message.content, getattr(choice.message, "refusal", None)
            finish = str(choice.finish_reason)
        except (AttributeError, IndexError, TypeError):
            raise ProviderError(ErrorKind.SCHEMA, "the endpoint's answer is no chat completion") from None
        if refusal or finish == "content_filter":
            raise ProviderError(ErrorKind.BAD_REQUEST, "the model refused to answer")
        return Said(content if isinstance(content, str) else "", finish)

    def _meter(self, usage: Any) -> None:
        used_in, used_out = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        metering.spent(tokens=used_in + used_out, usd=used_in * self._usd_in + used_out * self._usd_out)


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0


# --- errors -----------------------------------------------------------------------------------------------------


def _problem(error: openai.OpenAIError, key: str) -> ProviderError:
    """What a failed request means. Without the key, and without the body of a refused key: endpoints quote it."""
    if isinstance(error, openai.APIConnectionError):  # timeouts too
        return ProviderError(ErrorKind.TRANSIENT, error.message)
    if not isinstance(error, openai.APIStatusError):
        return ProviderError(ErrorKind.SCHEMA, f"{type(error).__name__}: the endpoint's answer is not understood")
    kind = _kind(error.status_code, {str(error.code), str(error.type)})
    if kind is ErrorKind.BAD_KEY:
        return ProviderError(kind, f"the endpoint refused the key ({error.status_code})")
    said = bounded(one_line(error.message.replace(key, "***")), MAX_TOLD)
    return ProviderError(kind, f"{error.status_code}: {said}", _wait(error.response.headers))


def _problem_in_body(error: Any) -> ProviderError:
    """Of an answer whose status says success. Only its code is told: its words may be anything, a key among them."""
    fields = error if isinstance(error, Mapping) else {}
    code = str(fields.get("code"))
    status = int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else 0
    return ProviderError(
        _kind(status, {code, str(fields.get("type"))}),
        f"an error in an answer of status 200, code {bounded(one_line(code), 40)!r}",
    )


def _kind(status: int, names: set[str]) -> ErrorKind:
    """By the names that OpenAI's errors carry (providers.md 11), then by the status."""
    return ErrorKind.NO_CREDIT if names & _NO_CREDIT else kind_of(status)


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait: `retry-after-ms` comes before `retry-after`."""
    milliseconds = retry_after(headers.get("retry-after-ms"), time.time())
    return milliseconds / 1e3 if milliseconds is not None else retry_after(headers.get("retry-after"), time.time())
