"""The judge's model as one more provider: a `JudgeModel` whose requests go the way that those of search engines go.

    Judge -> JudgeEndpoint.say -> Asker: lease, deadline, retries, settlement -> ChatEndpoint: one request

Always true: every request, a retry too, has a lease where the judge has a quota, and settles it with the tokens that
the endpoint counted; what goes wrong leaves as Unanswered. An evaluation has no other judge to turn to: it sits out
an open circuit, as often as it would repeat a request, where a search falls through to the next provider.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.agent.seams import Clock
from actors.reward.judge import Unanswered
from actors.reward.settings import JudgeSettings
from actors.search.build import endpoint
from actors.search.endpoints import Asker, Endpoint, Sleep, Tally
from actors.search.providers.openai_chat import ChatEndpoint
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import ProviderSettings, RetrySettings, SearchSettings
from cluster.errors import UserError

MAX_TOKENS = 1024  # of a verdict, a reasoning model's thought included
RETRY = RetrySettings(
    first_wait=0.5, longest_wait=60.0
)  # nobody waits for a verdict: a minute's Retry-After is sat out
SPARE_S = 5.0  # beyond the endpoint's own deadline, which knows better what to say
_FINAL = (ErrorKind.BAD_KEY, ErrorKind.NO_CREDIT, ErrorKind.BUDGET)


def judge_provider(settings: JudgeSettings) -> ProviderSettings:
    """The judge as quota, journal and `mmsearch quota` know it."""
    kwargs = {
        "model": settings.model,
        "base_url": settings.base_url,
        "key_env": settings.api_key_env,
        "max_tokens": MAX_TOKENS,
        "timeout_s": settings.timeout_s,
    }
    path = f"{ChatEndpoint.__module__}:{ChatEndpoint.__name__}"
    return ProviderSettings(path=path, kwargs=kwargs, name=settings.name, quota=settings.quota)


class JudgeEndpoint:
    """A `JudgeModel`. For one event loop; `close` when done. `tally`: what was used so far, of all requests."""

    def __init__(
        self,
        settings: JudgeSettings,
        quota_folder: str = "",
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`quota_folder`: address of the journals, "" for none. Raises `UserError` when the key is not there."""
        _check_key(settings)
        self._endpoint: Endpoint[ChatEndpoint] = endpoint(judge_provider(settings), quota_folder)
        self._asker = Asker(_asking(settings), clock, sleep, random.Random())
        self._sleep, self._retries, self.tally = sleep, settings.retries, Tally()

    @property
    def address(self) -> str:
        """Where it goes, free of what may be secret in an address."""
        return self._endpoint.provider.address

    async def say(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The model's words. Raises Unanswered."""
        attempt = 0
        while True:
            try:
                said, _ = await self._asker.first_answer([self._endpoint], lambda chat: chat.say(messages), self.tally)
                return said.text
            except ProviderError as error:
                quota = self._endpoint.quota
                if error.kind is not ErrorKind.OPEN or quota is None or attempt >= self._retries:
                    raise Unanswered(error.message, final=error.kind in _FINAL) from error
            attempt += 1
            await self._sleep(quota.open_seconds)

    async def close(self) -> None:
        """Tell the quota what was used, and close the connections."""
        if self._endpoint.desk is not None:
            await self._endpoint.desk.close()
        await self._endpoint.provider.close()


def _asking(settings: JudgeSettings) -> SearchSettings:
    """Deadlines and retries of one verdict. One of many waits for leases that the others hold, before each attempt."""
    queue, quota = 0.0, settings.quota
    if quota is not None:
        queue += settings.concurrency / quota.per_second if quota.per_second else 0.0
        queue += settings.concurrency * settings.timeout_s / quota.concurrency if quota.concurrency else 0.0
    one = settings.timeout_s + SPARE_S
    return SearchSettings(
        attempt_deadline=one,
        call_deadline=(settings.retries + 1) * (one + queue) + settings.retries * RETRY.longest_wait,
        max_concurrency=settings.concurrency,
        retry=RetrySettings(settings.retries, RETRY.first_wait, RETRY.longest_wait),
    )


def _check_key(settings: JudgeSettings) -> None:
    if settings.api_key_env and not os.environ.get(settings.api_key_env):
        raise UserError(
            f"The judge's key is to be in the environment variable {settings.api_key_env}, which is not set;"
            ' for an endpoint that wants none, set evaluate.judge.api_key_env to "".'
        )
