"""One actor of Ray Data's pool: an engine, the tools, and a loop on which the episodes of all its calls run.

Ray Data calls it from several threads, each with a batch of rows; a call returns when its rows have ended. There are
more rows in its calls than episodes at a time, so that the engine always has as many as it may, and a slow episode
holds back nothing but its own batch. The loop is this actor's own: Ray Data's, for `async` methods, waits on queues
and fetches batches, and an engine's requests would wait with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from actors.agent.seams import Generation, Sampling
from actors.agent.trajectory import Segment
from cluster.collector import collect_rarely
from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from cluster.storage_failures import reason_of
from workflows.predict import source
from workflows.predict.answers import ROW
from workflows.predict.parts import PartWriter
from workflows.predict.pictures import PictureReader
from workflows.predict.player import EngineBroken, Player, Rules
from workflows.predict.source import Unit

if TYPE_CHECKING:
    from actors.sampler.engine import Engine
    from workflows.settings import Settings

_log = logging.getLogger(__name__)
T = TypeVar("T")
ENDED = pa.schema(
    [
        (ROW, pa.int64()),
        ("ended", pa.string()),
        ("failure", pa.string()),
        ("problem", pa.string()),
        ("searches", pa.int32()),
        ("cost_usd", pa.float64()),
    ]
)
BATCH = 4  # rows of a call: few, because a call ends with its slowest
MENDED = 3  # engines started in place of one that died; more die of something that does not pass
CLOSE_S = 20.0


@dataclass(frozen=True)
class Plan:
    """What every actor must know."""

    settings: Settings
    run: str  # address of its folder
    checkpoint: str | None  # as `workflows.ask.model_folder` takes it, from any working directory
    weights_version: str
    pictures: str  # address of the folder that paths are relative to
    parts: str  # address of the folder for answers


def read_rows(units: pa.Table) -> Iterator[pa.Table]:
    """Rows of `ASKED`; `units` has one column `unit` of JSON. Raise `UserError` for a damaged file, `RunBroken` for
    storage that fails."""
    for unit in map(Unit.from_json, units["unit"].to_pylist()):
        try:
            yield from source.read(unit)
        except pa.ArrowException as error:
            told = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{unit.folder}/{unit.file} is damaged in row group {unit.group}: {told}.") from error
        except OSError as error:
            raise RunBroken(
                f"{unit.folder}/{unit.file} could not be read: {reason_of(error)}; the same command continues"
            ) from error


def weights_version(model: Folder) -> str:
    """The same for the same weights, wherever they lie."""
    return model.fingerprint(".safetensors")[:16]


class PredictWorker:
    """The callable class that Ray Data's actor pool makes once per actor, and calls from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()  # what is to be closed
        threading.Thread(target=self._loop.run_forever, name="episodes", daemon=True).start()
        self._player: Player | None = None
        self._failed: Exception | None = None  # told by the first call: Ray Data would hide what a constructor raises
        seconds = plan.settings.predict.ready_timeout_s
        try:
            self._player = self._done(self._started(plan), seconds)
        except TimeoutError:
            self._failed = UserError(
                f"No engine was ready within {seconds:g} s: predict.ready_timeout_s gives it more."
            )
        except Exception as error:  # a model, an index or an engine that does not start, each in its own way
            self._failed = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `ASKED` in, rows of `ENDED` out. Raise what kept the engine from starting."""
        if self._player is None:
            raise self._failed or RuntimeError("no engine was started")
        ended = self._done(self._player.play(rows.to_pylist()))  # each episode has a deadline
        return pa.Table.from_pylist(ended, schema=ENDED)

    def __del__(self) -> None:
        """Ray Data's way to say that no more rows come."""
        self._done(self._open.aclose(), CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _done(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _started(self, plan: Plan) -> Player:
        from actors.model.load import local_model
        from actors.model.renderer import load_renderer
        from actors.sampler.engine import Engine
        from actors.search.build import build_gateway
        from actors.search.fetch.reader import DirectReader
        from workflows.ask import model_folder
        from workflows.run_folder import RunFolder
        from workflows.serve.memory_images import MemoryImages

        settings = plan.settings
        run = RunFolder.at(plan.run)
        folder = model_folder(run.root, plan.checkpoint)  # on this node, wherever it lies
        if weights_version(Folder(folder)) != plan.weights_version:
            raise UserError(f"The weights at {folder} are others than when this began, or others on this node.")
        model = local_model(settings.pictures.on(str(folder)))
        wanted, preset = settings.predict, settings.agent.protocol
        renderer = load_renderer(model, preset.system)
        images = MemoryImages(wanted.pictures_mib << 20)
        gateway = build_gateway(settings.search, images)
        self._open.push_async_callback(gateway.close)
        web = DirectReader()
        self._open.push_async_callback(web.close)
        engine = MendedEngine(lambda: Engine(model, settings.engine, renderer, images))
        self._open.push_async_callback(engine.close)
        await gateway.open()
        await engine.start()
        collect_rarely()
        rules = Rules(
            preset=preset,
            limits=settings.agent.limits,
            temperature=wanted.temperature,
            max_images=settings.engine.images_per_prompt,
            concurrency=wanted.concurrency,
            retries=wanted.retries,
            weights_version=plan.weights_version,
        )
        pictures = PictureReader(Folder(plan.pictures), run.images(), web)
        parts = PartWriter(Folder(plan.parts), wanted.save_every_s)
        return Player(rules, engine, renderer, gateway, images, pictures, parts)


class MendedEngine:
    """A `Generator` that outlives the engine in it: one that is broken is replaced, `MENDED` times in all."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make, self._engine = make, make()
        self._left = MENDED
        self._mending = asyncio.Lock()

    async def start(self) -> None:
        """Start the first one. Raise what vLLM raises."""
        await self._engine.start()

    async def close(self) -> None:
        """Stop it."""
        await self._engine.close()

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        """As `Generator.generate`."""
        return await self._engine.generate(segments, sampling, deadline=deadline)

    async def mend(self) -> None:
        """Return when the engine works. Raise `EngineBroken` when it does not, and none takes its place any more."""
        async with self._mending:  # all episodes of a dead engine come here; the first one replaces it
            while not await self._engine.answers():
                if not self._left:
                    raise EngineBroken(f"the engine died {MENDED + 1} times")
                self._left -= 1
                _log.warning("the engine is replaced; %d more times at most", self._left)
                await self._engine.close()
                self._engine = self._make()
                try:
                    await self._engine.start()
                except Exception as error:  # vLLM's own errors are of many types
                    _log.warning("it did not start: %r", error)
