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
