"""What goes wrong, in OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`.

Always true: a message says what to do, on one bounded line without control characters and lone surrogates, whatever of
the request it quotes; it holds nothing of anybody else's request, and no key.
"""

from __future__ import annotations

import math
from typing import Any

from actors.agent.untrusted import one_line

MAX_MESSAGE = 500  # characters: more of a stranger's text is no help to them
MAX_PARAM = 120

AGENT_DIED = "agent_died"


class ApiError(Exception):
    """An answer that is a refusal. `code` is for programs, `param` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = _short(message, MAX_MESSAGE)
        super().__init__(self.message)
        self.status, self.kind, self.code, self.retry_after_s = status, kind, code, retry_after_s
        self.param = None if param is None else _short(param, MAX_PARAM)

    def __reduce__(self):
        return (_again, (self.status, self.message, self.kind, self.code, self.param, self.retry_after_s))

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads, plain or as the last event of a stream."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's client waits as long as `Retry-After` says when that is two minutes at most, else not at all."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.code == "insufficient_quota":
            headers["x-should-retry"] = "false"
        return headers


def _short(text: str, most: int) -> str:
    """On one line. What is quoted is cut before it is looked through: a message costs the same whatever was sent."""
    line = one_line(text[: 2 * most])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _again(
    status: int, message: str, kind: str, code: str | None, param: str | None, retry_after_s: float | None
) -> ApiError:
    return ApiError(status, message, kind=kind, code=code, param=param, retry_after_s=retry_after_s)


def invalid(message: str, param: str | None = None, *, code: str | None = None, status: int = 400) -> ApiError:
    """The request is wrong, and would be again."""
    return ApiError(status, message, code=code, param=param)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def not_found(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    return ApiError(404, message, code=code, param=param)


def too_large(message: str) -> ApiError:
    return ApiError(413, message, code="request_too_large")


def too_many(message: str, retry_after_s: float) -> ApiError:
    """The client's own rate, or the service's queue: later it may be taken."""
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s)


def budget_spent(message: str) -> ApiError:
    """No retry mends it today; OpenAI's clients know this code as the one not to try again."""
    return ApiError(429, message, kind="insufficient_quota", code="insufficient_quota")


def unavailable(message: str, retry_after_s: float | None = None) -> ApiError:
    """What the service stands on has failed; the request itself was fine."""
    return ApiError(503, message, kind="server_error", code="service_unavailable", retry_after_s=retry_after_s)


def agent_died() -> ApiError:
    """The process that had this request was killed; nothing is wrong with the request."""
    message = "The agent that had this request died; another takes its place: ask again."
    return ApiError(503, message, kind="server_error", code=AGENT_DIED, retry_after_s=1.0)


def ingress_died() -> ApiError:
    """The same of the process before the agent."""
    return unavailable("The process that had this request died; another takes its place: ask again.", 1.0)


def nobody_there() -> ApiError:
    """Nothing of the service runs, for now or for good."""
    return unavailable("The service is not there at the moment: ask again.", 5.0)


def late() -> ApiError:
    """The ingress did not end a request within its time, and somebody before it did."""
    return unavailable("The service did not answer in time: ask again.", 5.0)


def full() -> ApiError:
    """Over the bound of requests that wait, or are under way."""
    return too_many("The service has as many requests as it takes: ask again.", 2.0)


def broken() -> ApiError:
    """A bug of ours: its traceback is in the log, the client learns no more than that."""
    return ApiError(500, "The service failed on this request; its log says why.", kind="server_error")
