"""What SFT runs on Ray: reading the conversations, the training function of every rank, and the board between them
and the driver.

Every rank holds all conversations (token ids alone: small) and draws the same seeded order, so which ones a step learns
from does not depend on how often the run was stopped. A step is: rank i takes its part of the batch, all ranks together
make one optimizer step, rank 0 puts its numbers on the board and reads there whether to stop.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from workflows.dataset.conversations import COLUMNS, Conversation, conversation_of, rows_of, shards_of
from workflows.dataset.pipeline import in_order_and_quietly
from workflows.run_folder import RunFolder
from workflows.sft_batches import batch_of, part_of
from workflows.sft_failures import NoTryInVain, ended_by
from workflows.sft_settings import SftSettings

if TYPE_CHECKING:
    from actors.learner.supervised import SupervisedLearner
    from actors.model.pixels import Pixels

STEP_FILE = "step.txt"
DATASET = "conversations"
ANSWER_S = 120.0  # for one call of the board, which takes microseconds; the first one waits for its process


@dataclass(frozen=True)
class Task:
    """What a rank must know; addresses, as it may run on another node."""

    settings: SftSettings
    seed: int
    folder: str  # the run's
    model: str


# --- data ------------------------------------------------------------------------------------------------------------


def conversations(
    source: Folder, folder: str, model: str, settings: SftSettings
) -> tuple[ray.data.MaterializedDataset, list[str]]:
    """The usable rows of all shards, read and checked by Ray Data, and why the others are not."""
    image_token = int(Folder(model).read_json("config.json")["image_token_id"])

    def read(batch: Any) -> pa.Table:
        images = RunFolder.at(folder).images()
        rows = [
            row
            for shard in batch["shard"]
            for row in rows_of(source, str(shard), images, image_token, settings.max_length)
        ]
        return pa.Table.from_pylist(rows, schema=COLUMNS)

    in_order_and_quietly()
    shards = [{"shard": name} for name in shards_of(source)]
    rows = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(read, batch_size=1, num_cpus=0.5)
    rows = rows.materialize()
    problems = [row["problem"] for row in rows.select_columns(["problem"]).take_all() if row["problem"]]

    def usable(batch: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        return batch.filter(pc.equal(batch["problem"], "")).drop_columns(["problem"])

    return rows.map_batches(usable, batch_format="pyarrow", batch_size=None, num_cpus=0.5).materialize(), problems


# --- a rank ----------------------------------------------------------------------------------------------------------


def train(config: dict[str, Any]) -> None:
    """The training function of Ray Train: every rank runs it, and runs it again after a failure."""
    task, board = config["task"], config["board"]
    rank = Rank(task, _whoami(), _received)
    done = rank.restore()
    settings = task.settings
    for step in range(done + 1, settings.steps + 1):
        numbers, rates = rank.step(step)
        stop = rank.agreed(rank.first and answered(board.put.remote(step, numbers, rates)))
        if stop or step == settings.steps or step % settings.checkpoint_every == 0:
            rank.checkpoint(step, numbers)
        if stop and step < settings.steps:
            return
    rank.export()
    if rank.first:
        answered(board.finish.remote(settings.steps))


class Rank:
    """One rank: its learner and all conversations."""

    def __init__(self, task: Task, ranks: Any, received: Callable[[int], list[Conversation]]) -> None:
        """`ranks` says who this is (actors.learner.backends.ranks); `received` gives the conversations, in an order
        that is the same on all ranks, for the id of the image token."""
        # torch and DeepSpeed are imported here: the driver imports this module, too
        import torch
        import transformers

        from actors.learner.adapters import add_adapters
        from actors.learner.backends.ranks import join
        from actors.learner.parts import freeze_parts
        from actors.learner.supervised import SupervisedLearner
        from actors.model.load import load_policy, local_model
        from actors.model.pixels import Pixels
        from cluster.allocator import keep_freed_memory

        keep_freed_memory()
        transformers.utils.logging.disable_progress_bar()
        self.task, self.settings = task, task.settings
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.ranks = join(ranks)
        self.first = self.ranks.rank == 0
        self.source = local_model(task.model)
        policy: Any = load_policy(self.source, "float32" if self.settings.precision == "fp32" else "bfloat16")
        freeze_parts(policy, self.settings.freeze)
        if self.settings.lora is not None:
            add_adapters(policy, self.settings.lora)
        self.conversations = received(int(policy.config.image_token_id))
        pixels = Pixels.load(self.source, RunFolder.at(task.folder).images(), dtype="bfloat16")
        _check_pictures(self.conversations, pixels, int(policy.config.image_token_id))
        self.learner: SupervisedLearner = SupervisedLearner(
            policy, self.settings.backend, self.ranks, pixels, self.settings.micro_batch_tokens
        )

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one; returns the steps that were made."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            self.learner.load(Path(folder))
            return int((Path(folder) / STEP_FILE).read_text())

    def step(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """One optimizer step of all ranks. Numbers are the whole batch's, but for `micro_batches` and `seconds`, which
        are this rank's; so are the rates, by kind: the shares of its conversations that greedy decoding would say."""
        started = time.perf_counter()
        chosen = batch_of(step, self.settings.batch, len(self.conversations), self.task.seed)
        batch = [self.conversations[i] for i in chosen]
        mine = part_of([len(one.expanded) for one in batch], self.ranks.rank, self.ranks.world)
        stats, exact = self.learner.step([batch[i].expanded for i in mine])
        seen = float(sum(len(one.expanded) for one in batch))
        numbers = stats.numbers() | {"tokens_seen": seen, "seconds": time.perf_counter() - started}
        kinds: dict[str, list[bool]] = {}
        for i, value in zip(mine, exact, strict=True):
            kinds.setdefault(batch[i].kind or "any", []).append(value)
        return numbers, {kind: sum(values) / len(values) for kind, values in kinds.items()}

    def agreed(self, stop: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.ranks.largest([float(stop)])[0])

    def checkpoint(self, step: int, numbers: dict[str, float]) -> None:
        """Every rank gives its shard; together they are one checkpoint."""
        with tempfile.TemporaryDirectory(prefix="mmsearch-sft-") as scratch:
            self.learner.save(Path(scratch))
            if self.first:
                (Path(scratch) / STEP_FILE).write_text(str(step))
            ray.train.report({"step": step, "loss": numbers["loss"]}, checkpoint=Checkpoint.from_directory(scratch))

    def export(self) -> None:
        self.learner.export(RunFolder.at(self.task.folder).sft_export, self.source)


def _check_pictures(conversations: Sequence[Conversation], pixels: Pixels, image_token: int) -> None:
    """Raise `UserError` unless pictures are as long in the conversations as the model reads them."""
    for one in conversations:
        written = int((one.expanded.token_ids == image_token).sum())
        read = sum(pixels.n_tokens(ref) for ref in one.expanded.images)
        if written != read:
            raise UserError(
                f"Conversation {one.id} gives its pictures {written} tokens, and the model reads {read}: it was"
                " written for another model, or under other bounds (pictures.min_pixels, pictures.max_pixels)."
            )


def _whoami() -> Any:
    from actors.learner.backends.ranks import Ranks

    context = ray.train.get_context()
    return Ranks(context.get_world_rank(), context.get_world_size())


def _received(image_token: int) -> list[Conversation]:
    """All conversations, in an order that is the same on every rank and in every run."""
    in_order_and_quietly()
    shard: Any = ray.train.get_dataset_shard(DATASET)
    rows = [row for batch in shard.iter_batches(batch_format="pyarrow", batch_size=256) for row in batch.to_pylist()]
    return sorted((conversation_of(row, image_token) for row in rows), key=lambda it: it.id)


# --- the driver's end ------------------------------------------------------------------------------------------------


class Board:
    """A small actor: what ranks report, and whether they are to stop."""

    def __init__(self) -> None:
        self._news: list[tuple[int, dict[str, float], dict[str, float]]] = []
        self._stop, self._done = False, 0

    def put(self, step: int, numbers: dict[str, float], rates: dict[str, float]) -> bool:
        self._news.append((step, numbers, rates))
        return self._stop

    def take(self) -> list[tuple[int, dict[str, float], dict[str, float]]]:
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        self._stop = True

    def finish(self, step: int) -> None:
        self._done = step

    def done(self) -> int:
        """Steps of a training that has ended and exported its model, else 0."""
        return self._done


def open_board() -> Any:
    """On the node of the driver, whose end is the training's end: no other node's end is to be."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


def answered(call: Any) -> Any:
    """What the board answers. Raise `RunBroken` when it does not, or is gone."""
    try:
        return ray.get(call, timeout=ANSWER_S)
    except (GetTimeoutError, RayActorError) as error:
        why = f"gave no answer in {ANSWER_S:.0f} s" if isinstance(error, GetTimeoutError) else "is gone"
        raise RunBroken(
            f"the process that SFT's ranks report to, on the machine of this command, {why};"
            " the same command goes on from the newest checkpoint"
        ) from error


class Fit:
    """A training on Ray Train, to be run in a thread of the driver, and the driver's view of its board."""

    def __init__(self, task: Task, data: ray.data.Dataset, folder: Folder, name: str) -> None:
        # Ray Train would log what ranks print, also what a backend has redirected: DeepSpeed's memory reports
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
        self._board: Any = open_board()
        settings = task.settings
        files, path = folder.pyarrow_filesystem()
        resources = {"CPU": settings.rank_cpus} | ({"GPU": settings.rank_gpus} if settings.rank_gpus else {})
        self._trainer = TorchTrainer(
            train,
            train_loop_config={"task": task, "board": self._board},
            torch_config=TorchConfig(backend="nccl" if settings.rank_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=settings.ranks, use_gpu=settings.rank_gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=None if folder.is_local else files,
                logging_config=LoggingConfig(log_level="WARNING"),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
                callbacks=[NoTryInVain()],
            ),
            datasets={DATASET: data},
            dataset_config=DataConfig(datasets_to_split=[]),
        )

    def run(self) -> None:
        """Blocks until the training has ended. Raise what a rank or the controller ended it with (`ended_by`)."""
        try:
            self._trainer.fit()
        except TrainingFailedError as error:
            if (told := ended_by(error)) is not None:
                raise told from error
            raise

    def news(self) -> list[tuple[int, dict[str, float], dict[str, float]]]:
        return answered(self._board.take.remote())

    def stop(self) -> None:
        answered(self._board.stop.remote())

    def done(self) -> int:
        return answered(self._board.done.remote())
