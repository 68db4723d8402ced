"""The Ray Data part: row groups are read by tasks, cut into small blocks, and played by a pool of actors.

    units -> read_rows (tasks) -> blocks of BATCH rows -> PredictWorker (actors) -> how each row ended, as it ends

Blocks come back in the order in which they end, and hold a few words per row: the answers are on storage by then. An
actor whose process dies is started again by Ray Data, and its rows are played again, until no row ends for too long.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RaySystemError, WorkerCrashedError

from cluster.errors import RunBroken, UserError
from workflows.dataset.pipeline import in_order_and_quietly
from workflows.predict.source import Unit
from workflows.predict.worker import BATCH, Plan, PredictWorker, read_rows

if TYPE_CHECKING:
    from workflows.predict.settings import PredictSettings

READER_CPUS = 0.5  # of a task that reads; they run while the actors play
AHEAD = 1024  # blocks that ended and were not counted yet
UNIT_BLOCKS = 1000  # of the row groups themselves
LOOK_S = 0.5  # between two looks, so that Ctrl-C is heeded
CLOSE_S = 30.0  # for the actors to tell their quotas what was used, and to end

_DIED = (RayActorError, WorkerCrashedError, OutOfMemoryError, RaySystemError)


def played(units: Sequence[Unit], plan: Plan, patience_s: float) -> Iterator[list[dict[str, Any]]]:
    """How rows ended (`worker.ENDED`), some at a time. `patience_s`: when nothing ends for so long, all is given up.

    Raise `RunBroken` for processes that died or hang, and otherwise what an actor or a reader raised.
    """
    news: queue.Queue[Any] = queue.Queue(AHEAD)
    data = _pipeline(units, plan)

    def work() -> None:
        try:
            batches: Iterable[Any] = data.iter_batches(batch_size=None, batch_format="pyarrow")
            for batch in batches:
                news.put(batch.to_pylist())
            news.put(None)
        except BaseException as error:  # handed to the thread that waits for it
            news.put(error)

    threading.Thread(target=work, name="ray-data", daemon=True).start()
    while (found := _next(news, patience_s)) is not None:
        if isinstance(found, BaseException):
            raise _told(found) from found
        yield found


def wait_for_the_end(before: float) -> None:
    """Return when the actors have ended, or do not: `before` is how many CPUs were free when they began."""
    deadline = time.monotonic() + CLOSE_S
    while time.monotonic() < deadline and ray.available_resources().get("CPU", 0.0) < before:
        time.sleep(LOOK_S)


def resources(settings: PredictSettings) -> dict[str, float]:
    """What Ray must have, by its names."""
    gpus = settings.actors * settings.actor_gpus
    return {"CPU": settings.actors * settings.actor_cpus + READER_CPUS} | ({"GPU": gpus} if gpus else {})


def _pipeline(units: Sequence[Unit], plan: Plan) -> ray.data.Dataset:
    wanted = plan.settings.predict
    in_order_and_quietly()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False  # the answers know their places
    context.raise_original_map_exception = True  # a sentence for a person arrives as one
    calls = max(1, -(-2 * wanted.concurrency // BATCH))  # as many rows again as there are episodes
    blocks = min(len(units), UNIT_BLOCKS)
    fed = ray.data.from_items([{"unit": unit.to_json()} for unit in units], override_num_blocks=blocks)
    read = fed.map_batches(read_rows, batch_size=1, batch_format="pyarrow", num_cpus=READER_CPUS)
    return read.repartition(target_num_rows_per_block=BATCH).map_batches(
        PredictWorker,
        fn_constructor_args=(plan,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=wanted.actors,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls,
            enable_true_multi_threading=True,
        ),
        num_cpus=wanted.actor_cpus,
        num_gpus=wanted.actor_gpus,
    )


def _next(news: queue.Queue[Any], patience_s: float) -> Any:
    waited = 0.0
    while waited < patience_s:
        try:
            return news.get(timeout=LOOK_S)
        except queue.Empty:
            waited += LOOK_S
    raise RunBroken(f"no row ended for {patience_s:.0f} s; the same command continues with those that are left")


def _told(error: BaseException) -> BaseException:
    """What an actor or a reader raised, without Ray's wrapping where it is a person's to mend, or the world's."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, UserError | RunBroken):
            return inner
        if isinstance(inner, _DIED):
            words = str(inner).strip().splitlines()[0]
            return RunBroken(f"an engine's process died: {words}; the same command continues with what is left")
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
