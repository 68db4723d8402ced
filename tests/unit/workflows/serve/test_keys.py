"""Keys: who comes in, how often and for how much, and that nobody learns one."""

import hmac
import logging
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.serve import keys
from workflows.serve.errors import ApiError
from workflows.serve.keys import Allowance, Doorkeeper, Keyring, digest, new_key
from workflows.serve.settings import KeySettings

ADA, BOB = "mms-ada-and-nobody-else", "mms-bob-and-nobody-else"
KEYS = [KeySettings("ada", digest(ADA), 60.0, 1.0), KeySettings("bob", digest(BOB), 6.0)]
NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC
DAY = 86_400.0


class Time:
    """A clock and a calendar that a test moves."""

    def __init__(self):
        self.now, self.wall = 0.0, NOON

    def pass_(self, seconds):
        self.now += seconds
        self.wall += seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def keeper(time):
    return Doorkeeper(lambda: time.now, lambda: time.wall)


def refusal(function, *arguments):
    with pytest.raises(ApiError) as refused:
        function(*arguments)
    return refused.value


# --- who ------------------------------------------------------------------------------------------------------------


def test_a_new_key_is_long_random_and_known_by_its_hash_alone():
    key, sha256 = new_key()
    assert re.fullmatch(r"mms-[A-Za-z0-9_-]{43}", key)
    assert Keyring([KeySettings("new", sha256)]).of(f"Bearer {key}") == Allowance("new", 60.0)
    assert new_key()[0] != key


def test_each_key_is_found_with_what_it_may_use():
    ring = Keyring(KEYS)
    assert ring.of(f"Bearer {ADA}") == Allowance("ada", 60.0, 1.0)
    assert ring.of(f"bearer  {BOB}") == Allowance("bob", 6.0, None)


def test_without_keys_everybody_comes_in():
    assert Keyring([]).of(None) is None
    assert Keyring([]).of("Bearer whatever") is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ADA,
        f"Basic {ADA}",
        f"Bearer {ADA}, Bearer {BOB}",
        f"Bearer {ADA}\x85",
        f"Bearer {ADA}\xa0",
        f"Bearer {ADA}\n",
        f"Bearer\n{ADA}",
        f" Bearer {ADA}",
        "Bearer " + "A" * 100_000,
        "Bearer ké",
    ],
)
def test_what_is_no_key_is_told_how_to_send_one(header):
    error = refusal(Keyring(KEYS).of, header)
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert error.headers["WWW-Authenticate"] == "Bearer"
    assert "send one as" in error.message


@pytest.mark.parametrize("guess", [ADA[:-1], ADA + "x", ADA.upper(), "x", digest(ADA), "ada"])
def test_an_error_does_not_tell_how_close_a_guess_was(guess):
    error = refusal(Keyring(KEYS).of, f"Bearer {guess}")
    assert (error.status, error.body) == (401, refusal(Keyring(KEYS).of, "Bearer zzz").body)


def test_every_key_is_compared_wherever_the_right_one_stands(monkeypatch):
    compared = []

    class Watched:
        @staticmethod
        def compare_digest(one, other):
            compared.append(one)
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "hmac", Watched)
    Keyring(KEYS).of(f"Bearer {ADA}")
    assert compared == [key.sha256 for key in KEYS]


def test_a_key_is_in_no_log_no_repr_no_pickle_and_no_error(caplog, keeper):
    caplog.set_level(logging.DEBUG)
    ring = Keyring(KEYS)
    allowance = ring.of(f"Bearer {ADA}")
    keeper.admit(allowance)
    keeper.charge("ada", 2.0)
    told = [refusal(keeper.admit, allowance), refusal(ring.of, f"Bearer {ADA}x"), refusal(ring.of, f"Basic {ADA}")]
    shown = [repr(one) + str(one) for one in (ring, allowance, keeper, KEYS, *told, *(error.body for error in told))]
    shown += [caplog.text, pickle.dumps((ring, KEYS, told)).decode("latin-1")]
    assert not [one for one in shown if ADA in one or "nobody-else" in one]


# --- how often ------------------------------------------------------------------------------------------------------


def test_a_key_may_send_its_minute_at_once_and_then_at_its_rate(keeper, time):
    bob = Allowance("bob", 6.0)
    for _ in range(6):
        keeper.admit(bob)
    error = refusal(keeper.admit, bob)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "10")
    time.pass_(10)
    keeper.admit(bob)
    assert refusal(keeper.admit, bob).status == 429


def test_a_refused_request_does_not_count(keeper, time):
    slow = Allowance("slow", 1.0)
    keeper.admit(slow)
    for _ in range(50):
        refusal(keeper.admit, slow)
    time.pass_(60)
    keeper.admit(slow)


def test_less_than_one_request_a_minute_is_a_rate_too(keeper, time):
    rare = Allowance("rare", 0.5)
    keeper.admit(rare)
    assert refusal(keeper.admit, rare).retry_after_s == pytest.approx(120)
    time.pass_(120)
    keeper.admit(rare)


def test_keys_do_not_share_their_rates(keeper):
    keeper.admit(Allowance("one", 1.0))
    keeper.admit(Allowance("two", 1.0))
    assert refusal(keeper.admit, Allowance("one", 1.0)).status == 429


def test_a_changed_rate_holds_from_the_next_request_on(keeper):
    keeper.admit(Allowance("ada", 1.0))
    refusal(keeper.admit, Allowance("ada", 1.0))
    keeper.admit(Allowance("ada", 100.0))


def test_after_a_restart_no_key_has_a_burst_and_all_have_their_rates(keeper, time):
    keeper.forget_bursts()
    ada = Allowance("ada", 60.0)
    assert refusal(keeper.admit, ada).retry_after_s == pytest.approx(1)
    for _ in range(5):
        time.pass_(1.001)
        keeper.admit(ada)
        refusal(keeper.admit, ada)


@given(st.lists(st.floats(0, 30), max_size=200), st.sampled_from([1.0, 6.0, 7.5, 60.0]))
def test_no_window_of_a_minute_has_more_than_twice_the_rate(pauses, per_minute):
    time, admitted = Time(), []
    keeper = Doorkeeper(lambda: time.now, lambda: time.wall)
    for pause in pauses:
        time.pass_(pause)
        try:
            keeper.admit(Allowance("ada", per_minute))
        except ApiError as error:
            assert error.status == 429  # noqa: PT017 - the time of each is what is tested
        else:
            admitted.append(time.now)
    for start in admitted:
        assert sum(start <= at < start + 60 for at in admitted) <= 2 * per_minute


# --- for how much ---------------------------------------------------------------------------------------------------


def test_a_key_that_has_spent_its_day_is_told_not_to_try_again(keeper):
    ada = Allowance("ada", 60.0, 1.0)
    keeper.admit(ada)
    keeper.charge("ada", 0.6)
    keeper.admit(ada)
    keeper.charge("ada", 0.4)
    error = refusal(keeper.admit, ada)
    assert (error.status, error.code) == (429, "insufficient_quota")
    assert error.headers == {"x-should-retry": "false"}
    keeper.admit(Allowance("bob", 60.0, 1.0))


def test_a_day_begins_at_midnight_utc(keeper, time):
    ada = Allowance("ada", 60.0, 1.0)
    keeper.charge("ada", 5.0)
    time.pass_(DAY / 2 - 1)
    assert refusal(keeper.admit, ada).status == 429
    time.pass_(2)
    keeper.admit(ada)
    assert keeper.spent == ("2026-11-22", {})


def test_a_clock_that_is_set_back_brings_no_second_budget(keeper, time):
    keeper.charge("ada", 5.0)
    time.wall -= 2 * DAY
    assert refusal(keeper.admit, Allowance("ada", 60.0, 1.0)).status == 429


def test_what_was_spent_before_counts_on_its_day_alone(keeper):
    ada = Allowance("ada", 60.0, 1.0)
    keeper.recall("2026-11-20", {"ada": 5.0})
    keeper.admit(ada)
    keeper.recall("2026-11-21", {"ada": 0.7})
    keeper.admit(ada)
    keeper.charge("ada", 0.3)
    assert refusal(keeper.admit, ada).status == 429
    assert keeper.spent == ("2026-11-21", {"ada": 0.3})  # its own alone: the others have written theirs down


def test_a_key_without_a_budget_spends_on_and_it_is_counted(keeper):
    keeper.charge("bob", 1000.0)
    keeper.admit(Allowance("bob", 60.0))
    assert keeper.spent[1] == {"bob": 1000.0}


def test_a_negative_cost_gives_nothing_back(keeper):
    keeper.charge("ada", 1.0)
    keeper.charge("ada", -1.0)
    assert keeper.spent[1] == {"ada": 1.0}
