"""Answers on storage as they come, and put together in the end."""

import asyncio
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Failure
from cluster.storage import Folder
from tests.unit.workflows.predict.asked import asked
from workflows.predict.answers import ANSWERS, PARTS, answer_row, unasked
from workflows.predict.parts import Parts, PartWriter, write_file


def answer(number):
    return answer_row(asked(number), unasked(asked(number), "", Failure.NONE), 1, "v")


def put(folder, name, numbers):
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist([answer(number) for number in numbers], schema=PARTS), sink)
    folder.write_bytes(f"part-{name}.parquet", sink.getvalue())


class Gate:
    """A sleep that ends when a test says so."""

    def __init__(self):
        self.open, self.asked = asyncio.Event(), []

    async def __call__(self, seconds):
        self.asked.append(seconds)
        await self.open.wait()


async def test_rows_that_end_together_are_one_file_and_none_is_saved_before_it_is_there(tmp_path):
    gate, folder = Gate(), Folder(tmp_path)
    writer = PartWriter(folder, 2.0, gate)
    saving = [asyncio.create_task(writer.save(answer(number))) for number in (3, 1)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert (gate.asked, folder.list(), [task.done() for task in saving]) == ([2.0], [], [False, False])
    gate.open.set()
    await asyncio.gather(*saving)
    assert len(folder.list()) == 1
    assert Parts.in_folder(folder).rows.tolist() == [1, 3]
    await writer.save(answer(2))  # the next ones are another file
    assert len(folder.list()) == 2


async def test_a_row_that_ends_while_others_are_written_is_not_forgotten(tmp_path):
    class Slow(Folder):
        async def later(self):
            self.second = asyncio.ensure_future(writer.save(answer(2)))

        def write_bytes(self, name, data):
            if not self.list():
                asyncio.run_coroutine_threadsafe(self.later(), loop).result(5)
            super().write_bytes(name, data)

    loop, folder = asyncio.get_running_loop(), Slow(tmp_path)
    writer = PartWriter(folder, 0.0)
    await writer.save(answer(1))
    await folder.second
    assert Parts.in_folder(Folder(tmp_path)).rows.tolist() == [1, 2]


async def test_who_waits_is_told_that_storage_refused_and_the_next_row_is_tried_anew(tmp_path):
    class Full(Folder):
        full = True

        def write_bytes(self, name, data):
            if self.full:
                raise OSError(28, "No space left on device")
            super().write_bytes(name, data)

    folder = Full(tmp_path)
    writer = PartWriter(folder, 0.0)
    results = await asyncio.gather(writer.save(answer(1)), writer.save(answer(2)), return_exceptions=True)
    assert all(isinstance(result, OSError) for result in results)
    folder.full = False
    await writer.save(answer(1))
    assert Parts.in_folder(Folder(tmp_path)).rows.tolist() == [1]


async def test_a_saver_that_is_cancelled_does_not_hinder_the_others(tmp_path):
    gate = Gate()
    writer = PartWriter(Folder(tmp_path), 1.0, gate)
    first, second = (asyncio.create_task(writer.save(answer(number))) for number in (1, 2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await second


@given(st.lists(st.sets(st.integers(0, 40), min_size=1), max_size=6), st.integers(1, 50))
def test_the_output_has_every_row_once_in_its_order_whatever_ended_when(tmp_path_factory, written, chunk):
    folder = Folder(tmp_path_factory.mktemp("parts"))
    for i, numbers in enumerate(written):
        put(folder, f"{i}", sorted(numbers, key=lambda n: hash((i, n))))
    parts = Parts.in_folder(folder)
    expected = sorted({number for numbers in written for number in numbers})
    assert parts.rows.tolist() == expected
    tables = list(parts.tables(chunk=chunk))
    assert [row["id"] for table in tables for row in table.to_pylist()] == [f"q{number}" for number in expected]
    assert all(table.num_rows <= chunk and table.schema == ANSWERS for table in tables)
    middle = [row["id"] for table in parts.tables(2, 5, chunk) for row in table.to_pylist()]
    assert middle == [f"q{number}" for number in expected[2:5]]


def test_what_a_crash_left_beside_the_parts_is_no_part(tmp_path):
    folder = Folder(tmp_path)
    put(folder, "a", [1])
    (tmp_path / ".part-b.parquet.x1y2").write_bytes(b"torn")
    folder.write_json("identity.json", {})
    assert Parts.in_folder(folder).rows.tolist() == [1]


def test_a_damaged_part_is_no_answer_and_no_silence(tmp_path):
    (tmp_path / "part-a.parquet").write_bytes(b"torn")
    with pytest.raises(pa.ArrowInvalid):
        Parts.in_folder(Folder(tmp_path))


def test_a_file_tells_what_it_follows_from(tmp_path):
    folder = Folder(tmp_path)
    put(folder, "a", [1, 0])
    write_file(Parts.in_folder(folder).tables(), folder, "out.parquet", {b"key": b"value"})
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"key"] == b"value"
    assert (table["id"].to_pylist(), table.column_names) == (["q0", "q1"], ANSWERS.names)
