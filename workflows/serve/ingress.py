"""What happens to a request: taken in, played by an agent, told to the client. A replica of Ray Serve.

    request -> keys -> bounds -> pictures -> orders --handle--> Agent.play -> answer, or a stream of chunks

Always true: a request is answered, refused or broken off within its own deadline; over the bound of waiting requests
it is refused at once; a client that leaves takes its episode along; errors have OpenAI's shape, also in a stream, where
one stands in place of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from actors.agent.seams import Sampling
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.serve import answers, errors
from workflows.serve.chat import Asked, ChatRequest, asked
from workflows.serve.errors import ApiError
from workflows.serve.memory_images import MemoryImages
from workflows.serve.metrics import Meters
from workflows.serve.orders import Order, Picture, Standing
from workflows.serve.pictures import FETCH_S, PictureReader, RequestPictures
from workflows.serve.reports import TEXTS, Report
from workflows.serve.settings import GRACE_S, ServeSettings
from workflows.serve.stream import KEEP_ALIVE, ChunkWriter
from workflows.serve.till import Till

_log = logging.getLogger(__name__)
KEEP_ALIVE_S = 10.0  # of silence in a stream, after which a comment says that it lives
QUEUED = 256  # batches of reports that a client has not read yet; an agent then waits for it, within the request's time
TRIES = 2  # of an order whose agent died before it told anything
STANDING_S = 2.0  # for agents to say how they are
MAX_TURN_TOKENS = 1 << 20  # where the client names no bound: the protocol's own is smaller


@dataclass(frozen=True)
class Taken:
    """A request that was taken in."""

    model: str
    orders: list[Order]
    created: int  # unix seconds
    watched: bool
    include_usage: bool

    @property
    def identity(self) -> str:
        return self.orders[0].identity


class Ingress:
    """Becomes a deployment in app.py. `agent`: the handle of the agent deployment; `reader`: of pictures elsewhere;
    `log`: where the pictures of requests are kept, which nobody but the configuration can ask for."""

    def __init__(
        self,
        settings: ServeSettings,
        model: str,
        agent: Any,
        till: Till,
        reader: PictureReader | None = None,
        log: Folder | None = None,
    ) -> None:
        self._settings, self.model, self._agent, self.till, self._log = settings, model, agent, till, log
        self._pictures = RequestPictures(settings.request, MemoryImages(), reader)
        self.meters = Meters()
        self.draining = False
        self._choices = 0  # that are played, or wait for an agent
        self._standings: list[Standing] = []

    async def reconfigure(self, standing: dict[str, Any]) -> None:
        """Serve calls it: whether this door is to let nobody in any more, because the service ends."""
        self.draining = bool(standing.get("draining"))

    async def take(self, request: ChatRequest, caller: str, began: float) -> Taken:
        """Check it, fetch its pictures, make its orders. `began`: when it came (time.monotonic). Raises `ApiError`."""
        if self.meters.under_way > self._settings.most_requests:
            raise errors.full()
        if self.draining:
            raise errors.unavailable("The service is stopping: ask again when it is back.", 10.0)
        question = asked(request, self.model, self._settings.request)
        self._check_room(question.n)  # before its pictures are fetched, and again after
        pictures = await self._pictures.all_of(question.pictures, min(FETCH_S, question.bounds.seconds))
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        if self._log is not None:
            await asyncio.to_thread(_keep, self._log, identity, pictures)
        self._check_room(question.n)
        orders = orders_of(question, identity, caller, pictures, began)
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        return Taken(self.model, orders, int(time.time()), bool(request.stream), include_usage)

    async def answer(self, taken: Taken) -> dict[str, Any]:
        """The whole answer. Raises `ApiError`."""
        tasks = [self._counted(self._whole(order)) for order in taken.orders]
        try:
            choices = await asyncio.gather(*tasks)
        finally:
            await _ended(tasks)  # where one is refused, the others are not waited for
        return answers.completion(taken.identity, taken.created, taken.model, choices)

    async def stream(self, taken: Taken) -> AsyncGenerator[bytes, None]:
        """The answer's chunks as they come; an error in place of the rest. Raises `ApiError` before the first."""
        writer = ChunkWriter(
            taken.identity,
            taken.created,
            taken.model,
            time.monotonic,
            self._settings.events_per_second,
            taken.include_usage,
        )
        merged: asyncio.Queue[tuple[int, list[Report] | ApiError]] = asyncio.Queue(maxsize=QUEUED)
        tasks = [self._counted(self._pump(order, merged)) for order in taken.orders]
        running = len(tasks)
        try:
            first = await merged.get()  # an agent has it, or none will: the client learns which by the status
            if isinstance(first[1], ApiError):
                raise first[1]
            yield writer.begin(running)
            held: tuple[int, Any] | None = first
            while running:
                index, news = held or await _next(merged, writer.wait_s)
                held = None
                if isinstance(news, ApiError):
                    yield writer.failed(news)
                    return
                for report in news or ():
                    running -= report["type"] == "end"
                    if chunk := _chunk(writer, index, report):
                        yield chunk
                if news is None:
                    yield writer.due() or KEEP_ALIVE
            yield writer.end()
        finally:
            await _ended(tasks)

    async def standings(self) -> list[Standing]:
        """What each agent replica runs; empty when none answers. One that is full says what it said last."""
        try:
            found = await self._agent.broadcast("standing").results_async(timeout_s=STANDING_S, return_exceptions=True)
        except TimeoutError:
            return self._standings
        except Exception as error:  # of Serve and Ray there are many, and all mean that nobody answers
            _log.warning("no agent says how it is: %r", error)
            found = []
        self._standings = [one for one in found if isinstance(one, Standing)]
        return self._standings

    async def admit(self, authorization: str | None) -> str:
        """Whose request it is. Raises `ApiError`."""
        return await self.till.admit(authorization)

    def _check_room(self, choices: int) -> None:
        """Raises `ApiError`. More than there is room for are taken where nothing else is under way."""
        if self._choices and self._choices + choices > self._settings.room:
            raise errors.full()

    def _counted(self, choice: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """It, under way: from now to its end it takes room."""
        self._choices += 1
        task = asyncio.create_task(choice)
        task.add_done_callback(self._gone)
        return task

    def _gone(self, _: asyncio.Task[Any]) -> None:
        self._choices -= 1

    async def _pump(self, order: Order, merged: asyncio.Queue[Any]) -> None:
        """All that an agent tells of an order, and in the end why it stopped, if it did: somebody waits for either."""
        error = errors.unavailable("The agent stopped before it had answered: ask again.", 1.0)
        try:
            async with aclosing(self._reports(order)) as batches:
                async for batch in batches:
                    await merged.put((order.index, batch))
                    if batch and batch[-1]["type"] == "end":
                        return
        except ApiError as found:
            error = found
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # else it came from the agent, as Serve tells that it was cancelled
        await merged.put((order.index, error))

    async def _whole(self, order: Order) -> answers.Answered:
        """The end of an episode that nobody watches. Who stops waiting stops it there. Raises `ApiError`."""
        try:
            async with asyncio.timeout(order.bounds.seconds + GRACE_S):
                for attempt in range(1, TRIES + 1):
                    try:
                        return await self._called(self._agent.answer.remote(order))
                    except ApiError as error:
                        if attempt == TRIES or error.code != errors.AGENT_DIED:
                            raise
        except TimeoutError:
            pass
        raise errors.unavailable("The agent did not end in time.", 1.0)

    async def _called(self, answer: Any) -> answers.Answered:
        try:
            return await answer
        except Exception as error:
            raise _of(error) from error
        finally:
            _let_go(answer)

    async def _reports(self, order: Order) -> AsyncGenerator[list[Report], None]:
        """What an agent tells, within the request's time. Who stops listening stops it there. Raises `ApiError`."""
        try:
            async with asyncio.timeout(order.bounds.seconds + GRACE_S):
                for attempt in range(1, TRIES + 1):
                    told_some = False
                    try:
                        async for batch in self._played(order):
                            told_some = True
                            yield batch
                        return
                    except ApiError as error:
                        if told_some or attempt == TRIES or error.code != errors.AGENT_DIED:
                            raise
        except TimeoutError:
            raise errors.unavailable("The agent did not end in time.", 1.0) from None

    async def _played(self, order: Order) -> AsyncGenerator[list[Report], None]:
        answer = self._agent.options(stream=True).play.remote(order)
        try:
            async for batch in answer:
                yield batch
        except Exception as error:
            raise _of(error) from error
        finally:
            _let_go(answer)


def _of(error: Exception) -> BaseException:
    if (task := asyncio.current_task()) is not None and task.cancelling():
        return asyncio.CancelledError()  # Serve tells our own leaving as an error of its own
    return told(error)


def _let_go(answer: Any) -> None:
    with suppress(Exception):  # it raises again what kept the call from being begun
        answer.cancel()


def _keep(log: Folder, identity: str, pictures: Sequence[Picture]) -> None:
    try:
        for number, (_, data) in enumerate(pictures, start=1):
            log.write_bytes(f"{identity}-{number}", data)
    except (OSError, UserError) as error:
        _log.warning("the pictures of %s are not kept: %s", identity, error)


def _chunk(writer: ChunkWriter, index: int, report: Report) -> bytes:
    if report["type"] in TEXTS:
        return writer.text(index, TEXTS[report["type"]], report["text"])
    if report["type"] == "end":
        choice: answers.Answered = report["choice"]
        return writer.finish(index, choice)
    return writer.step(index, report)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(merged: asyncio.Queue[Any], wait_s: float | None) -> tuple[int, Any]:
    """The next reports, or none when held text is due or a client should hear that the stream lives."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_S if wait_s is None else wait_s):
            return await merged.get()
    except TimeoutError:
        return -1, None


def orders_of(question: Asked, identity: str, caller: str, pictures: tuple[Picture, ...], began: float) -> list[Order]:
    """One for each choice; the time that is left is counted from when the request came."""
    until = time.time() + question.bounds.seconds - (time.monotonic() - began)
    sampling = Sampling(question.temperature, question.top_p, question.max_tokens or MAX_TURN_TOKENS, question.seed)
    return [
        Order(
            identity=identity,
            index=index,
            caller=caller,
            text=question.text,
            pictures=pictures,
            sampling=replace(sampling, seed=None if question.seed is None else question.seed + 1000 * index),
            bounds=question.bounds,
            until=until,
            stop=question.stop,
            search=question.search,
            thumbnails=question.thumbnails,
        )
        for index in range(question.n)
    ]


def told(error: Exception) -> ApiError:
    """What a failed call of an agent means to the client."""
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, BackPressureError):
        return errors.full()
    if isinstance(cause, RayActorError):
        return errors.agent_died()
    if isinstance(cause, RequestCancelledError):
        return errors.unavailable("The agent stopped before it had answered: ask again.", 1.0)
    if isinstance(cause, DeploymentUnavailableError):
        return errors.unavailable("No agent is there at the moment: ask again.", 5.0)
    _log.error("a request failed", exc_info=error)
    return errors.broken()
