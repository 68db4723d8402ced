"""The Ray Data part of a dataset: play units in a pool of actors, and write what was chosen."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import SaveMode
from ray.data.datasource import FilenameProvider

from cluster.storage import Folder
from workflows.dataset.worker import DatasetWorker, Plan

SUMMARY = ("key", "data_id", "dropped", "detail", "kind", "designed_label", "category")


def in_order_and_quietly() -> None:
    """How this process runs Ray Data: rows keep their order, so the same settings make the same files; few words."""
    for name in ("ray.data", "ray.data.dataset", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns of all that it was told
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def play(units: Any, plan: Plan) -> ray.data.MaterializedDataset:
    """Every row of a part with its verdict, in the order of the units; held in Ray's object store."""
    wanted = plan.settings.dataset
    in_order_and_quietly()
    if isinstance(units, list):
        blocks = max(1, min(len(units), 4 * wanted.actors))
        fed = ray.data.from_items([{"unit": json.dumps(unit)} for unit in units], override_num_blocks=blocks)
    else:
        fed = units.map(lambda row: {"unit": json.dumps(row)})
    return fed.map_batches(
        DatasetWorker,
        fn_constructor_args=(plan,),
        batch_size=wanted.batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=wanted.actors),
        num_cpus=wanted.actor_cpus,
    ).materialize()


def summaries(played: ray.data.Dataset) -> list[dict[str, Any]]:
    """The small columns of every row."""
    return played.select_columns(list(SUMMARY)).take_all()


def write(played: ray.data.Dataset, keys: Sequence[str], target: Folder, shards: int) -> None:
    """The rows of these keys as `shards` Parquet files (fewer rows make fewer) in an empty folder."""
    chosen = pa.array(keys)

    def keep(rows: pa.Table) -> pa.Table:
        kept = rows.filter(pc.is_in(rows["key"], value_set=chosen))
        return kept.drop_columns(["key", "dropped", "detail"])

    files, path = target.pyarrow_filesystem()
    kept = played.map_batches(keep, batch_format="pyarrow", batch_size=None)
    kept.repartition(min(shards, len(keys))).write_parquet(
        path, filesystem=files, filename_provider=_Numbered(), mode=SaveMode.OVERWRITE, compression="zstd"
    )


class _Numbered(FilenameProvider):
    """part-00000.parquet and so on: the same names each time."""

    def __init__(self) -> None:
        super().__init__(file_format="parquet")

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:05d}.parquet"
