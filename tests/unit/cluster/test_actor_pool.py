import asyncio
import pickle

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from cluster.actor_pool import ActorPool, NoActorAnswered


class Actor:
    """What a handle's method returns is awaitable; a death is raised as Ray raises it."""

    def __init__(self, *answers) -> None:
        self.answers, self.calls = list(answers), 0

    async def ask(self, seconds_left):
        self.calls += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def dead():
    return ActorUnavailableError("the actor is restarting", None)


def ask(handle, seconds_left):
    return handle.ask(seconds_left)


async def test_calls_spread_over_the_actors():
    actors = [Actor("a"), Actor("b"), Actor("c")]
    pool = ActorPool(actors)
    await asyncio.gather(*(pool.call(ask, deadline=1e9) for _ in range(9)))
    assert [actor.calls for actor in actors] == [3, 3, 3]


async def test_a_dead_actors_call_goes_to_the_next_one_and_it_is_asked_last_for_a_while():
    time = Time()
    broken, whole = Actor(dead()), Actor("fine")
    pool = ActorPool([broken, whole], clock=time, sleep=time.sleep)
    assert [await pool.call(ask, deadline=10) for _ in range(6)] == ["fine"] * 6
    assert broken.calls <= 1


async def test_an_actor_that_comes_back_is_waited_for():
    time = Time()
    actor = Actor(dead(), dead(), dead(), "back")
    assert await ActorPool([actor], clock=time, sleep=time.sleep).call(ask, deadline=10) == "back"


async def test_when_none_comes_back_the_call_ends_at_its_deadline():
    time = Time()
    pool = ActorPool([Actor(dead()), Actor(dead())], clock=time, sleep=time.sleep)
    with pytest.raises(NoActorAnswered, match="ActorUnavailableError"):
        await pool.call(ask, deadline=10)
    assert time.now == pytest.approx(10)


async def test_an_error_of_the_method_is_raised_as_it_was_there():
    failure = RayTaskError("ask", "traceback", ValueError("torn"))
    with pytest.raises(ValueError, match="torn"):
        await ActorPool([Actor(failure), Actor("never")]).call(ask, deadline=1e9)


def test_a_pool_can_be_pickled_and_needs_an_actor():
    assert pickle.loads(pickle.dumps(ActorPool(["handle"]))).handles == ("handle",)
    with pytest.raises(ValueError, match="at least one"):
        ActorPool([])


# --- actors that a directory names ------------------------------------------------------------------------------------


class Members:
    """The directory's method: answers one after the other, each at once when it is another one than is known."""

    def __init__(self, *answers) -> None:
        self.answers, self.next, self.asked = list(answers), asyncio.Event(), []

    async def remote(self, known, wait_s):
        self.asked.append(known)
        if len(self.asked) > len(self.answers):
            await asyncio.Event().wait()
        if len(self.asked) > 1:
            await self.next.wait()
            self.next.clear()
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Directory:
    def __init__(self, *answers) -> None:
        self.members = Members(*answers)


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_the_actors_are_is_learnt_before_the_first_call_and_whenever_it_changes():
    a, b = Actor("a"), Actor("b")
    directory = Directory((7, (a,)), (8, (b,)))
    pool = ActorPool((), directory)
    assert await pool.call(ask, deadline=1e9) == "a"
    assert await pool.call(ask, deadline=1e9) == "a"
    directory.members.next.set()
    await settled()
    assert await pool.call(ask, deadline=1e9) == "b"
    assert directory.members.asked == [0, 7, 8]


async def test_a_call_never_waits_for_a_directory_when_it_knows_an_actor():
    pool = ActorPool([Actor("a")], Directory())
    assert await asyncio.wait_for(pool.call(ask, deadline=1e9), 5) == "a"


async def test_a_dead_directory_and_one_that_names_nobody_leave_the_actors_that_are_known():
    a = Actor("a")
    directory = Directory((7, (a,)), dead(), (9, ()))
    pool = ActorPool((), directory)
    assert await pool.call(ask, deadline=1e9) == "a"
    for _ in range(2):
        directory.members.next.set()
        await asyncio.sleep(0.1)
    assert directory.members.asked == [0, 7, 7, 9]
    assert await pool.call(ask, deadline=1e9) == "a"


async def test_a_call_whose_actors_are_all_dead_goes_to_those_that_are_named_meanwhile():
    directory = Directory((7, (Actor(dead()),)), (8, (Actor("new"),)))
    pool = ActorPool((), directory)
    call = asyncio.create_task(pool.call(ask, deadline=1e9))
    await asyncio.sleep(0.1)
    assert not call.done()
    directory.members.next.set()
    assert await asyncio.wait_for(call, 5) == "new"


async def test_who_stays_in_the_directory_keeps_its_count_of_calls():
    a, b = Actor("a"), Actor("b")
    gate = asyncio.Event()

    async def slow(handle, seconds_left):
        await gate.wait()
        return await handle.ask(seconds_left)

    directory = Directory((7, (a,)), (8, (a, b)))
    pool = ActorPool((), directory)
    await pool.call(ask, deadline=1e9)
    calls = [asyncio.create_task(pool.call(slow, deadline=1e9)) for _ in range(2)]
    await settled()
    directory.members.next.set()
    await settled()
    calls += [asyncio.create_task(pool.call(slow, deadline=1e9)) for _ in range(2)]
    await settled()
    gate.set()
    assert [await call for call in calls] == ["a", "a", "b", "b"]


async def test_without_calls_the_directory_is_left_alone_and_with_the_next_one_it_is_asked_again():
    time = Time()
    a = Actor("a")
    directory = Directory((7, (a,)), (8, (a,)), (9, (a,)))
    pool = ActorPool([a], directory, clock=time, sleep=time.sleep)
    await pool.call(ask, deadline=1e9)
    await settled()
    time.now += 61
    directory.members.next.set()
    await settled()
    assert directory.members.asked == [0, 7]
    await pool.call(ask, deadline=1e9)
    await settled()
    assert directory.members.asked == [0, 7, 8]


async def test_when_nobody_was_ever_named_the_call_ends_at_its_deadline_and_says_so():
    time = Time()
    pool = ActorPool((), Directory(), clock=time, sleep=time.sleep)
    with pytest.raises(NoActorAnswered, match="no actor is known"):
        await pool.call(ask, deadline=10)


def test_a_pool_is_pickled_with_its_directory():
    copy = pickle.loads(pickle.dumps(ActorPool((), "directory")))
    assert (copy.handles, copy._directory) == ((), "directory")


async def test_a_pool_that_was_closed_asks_its_directory_no_more():
    directory = Directory((7, (Actor("a"),)), (8, (Actor("b"),)))
    pool = ActorPool((), directory)
    await pool.call(ask, deadline=1e9)
    pool.close()
    directory.members.next.set()
    await settled()
    assert directory.members.asked in ([0], [0, 7])
