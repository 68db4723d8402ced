import asyncio
import threading

import pytest

from actors.search.grounding.batching import Batches
from actors.search.seams import ErrorKind, ProviderError


class Doubling:
    """Answers numbers with their doubles. `hold`: batches wait for it in their thread."""

    def __init__(self, bad=(), bad_together=False):
        self.bad, self.bad_together, self.batches = bad, bad_together, []
        self.hold, self.begun = threading.Event(), threading.Event()
        self.hold.set()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.hold.wait(10)
        if self.bad_together and len(numbers) > 1:
            raise MemoryError("too many")
        for number in numbers:
            if number in self.bad:
                raise ValueError(f"no {number}")
        return [2 * number for number in numbers]


class Gathering:
    """A pause between the first call and its batch that ends when told to."""

    def __init__(self):
        self.seconds, self.over = [], asyncio.Event()

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        await self.over.wait()


def batches(run, gathering, max_batch=4, max_waiting=100):
    return Batches(run, max_batch=max_batch, max_waiting=max_waiting, gather_s=0.005, sleep=gathering)


async def started(n, make):
    tasks = [asyncio.create_task(make(i)) for i in range(n)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_calls_that_arrive_together_run_together_in_batches_of_bounded_size():
    run, gathering = Doubling(), Gathering()
    all_of_it = batches(run, gathering)
    tasks = await started(10, all_of_it.ask)
    assert run.batches == []
    gathering.over.set()
    assert await asyncio.gather(*tasks) == [2 * i for i in range(10)]
    assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert gathering.seconds == [0.005]


async def test_what_arrives_while_a_batch_runs_makes_the_next_one_without_waiting_again():
    run, gathering = Doubling(), Gathering()
    gathering.over.set()
    all_of_it = batches(run, gathering)
    run.hold.clear()
    first = asyncio.create_task(all_of_it.ask(0))
    assert await asyncio.to_thread(run.begun.wait, 10)
    tasks = await started(3, lambda i: all_of_it.ask(i + 1))
    run.hold.set()
    assert await asyncio.gather(first, *tasks) == [0, 2, 4, 6]
    assert run.batches == [[0], [1, 2, 3]]
    assert len(gathering.seconds) == 1


async def test_a_later_call_is_served_after_all_was_quiet():
    run, gathering = Doubling(), Gathering()
    gathering.over.set()
    all_of_it = batches(run, gathering)
    assert [await all_of_it.ask(1), await all_of_it.ask(2)] == [2, 4]


async def test_a_bad_request_fails_its_own_caller_alone():
    run, gathering = Doubling(bad=(1,)), Gathering()
    gathering.over.set()
    tasks = await started(4, batches(run, gathering).ask)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answers[0], *answers[2:]] == [0, 4, 6]
    assert str(answers[1]) == "no 1"


async def test_a_batch_that_is_too_large_is_run_one_by_one():
    run, gathering = Doubling(bad_together=True), Gathering()
    gathering.over.set()
    tasks = await started(3, batches(run, gathering).ask)
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    assert run.batches == [[0, 1, 2], [0], [1], [2]]


async def test_an_answer_too_few_is_an_error_and_not_a_neighbours_answer():
    gathering = Gathering()
    gathering.over.set()
    tasks = await started(2, batches(lambda numbers: [], gathering).ask)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]


async def test_when_too_many_wait_a_further_call_is_refused_at_once():
    run, gathering = Doubling(), Gathering()
    all_of_it = batches(run, gathering, max_waiting=2)
    tasks = await started(2, all_of_it.ask)
    with pytest.raises(ProviderError) as caught:
        await all_of_it.ask(9)
    assert caught.value.kind is ErrorKind.RATE
    gathering.over.set()
    assert await asyncio.gather(*tasks) == [0, 2]


async def test_a_call_that_is_given_up_while_it_waits_is_not_run_and_frees_its_place():
    run, gathering = Doubling(), Gathering()
    all_of_it = batches(run, gathering, max_waiting=2)
    tasks = await started(2, all_of_it.ask)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    third = asyncio.create_task(all_of_it.ask(7))
    await asyncio.sleep(0)
    gathering.over.set()
    assert await asyncio.gather(tasks[1], third) == [2, 14]
    assert run.batches == [[1, 7]]


async def test_a_call_that_is_given_up_in_mid_batch_disturbs_nobody():
    run, gathering = Doubling(), Gathering()
    gathering.over.set()
    run.hold.clear()
    all_of_it = batches(run, gathering)
    tasks = await started(2, all_of_it.ask)
    assert await asyncio.to_thread(run.begun.wait, 10)
    tasks[0].cancel()
    await asyncio.sleep(0)
    run.hold.set()
    assert await tasks[1] == 2
    assert await all_of_it.ask(5) == 10
