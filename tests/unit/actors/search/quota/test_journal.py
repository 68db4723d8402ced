"""The journal: nothing that anybody spent is overwritten, counted twice, or lost to a torn file."""

from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from actors.search.quota.budgets import Spend
from actors.search.quota.journal import Journal
from cluster.storage import Folder


def claims(requests: int, day: str = "2026-11-21", month: str = "2026-11") -> dict:
    claimed = asdict(Spend(requests, 2 * requests, 3 * requests))
    return {"day": {"label": day, "claimed": claimed}, "month": {"label": month, "claimed": claimed}}


def total(folder: Folder) -> int:
    read = Journal(folder, "serper").read()
    return read["day"]["claimed"]["requests"] if read else 0


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), max_size=5))
def test_brokers_one_after_another_and_side_by_side_add_up(tmp_path_factory, spending):
    folder, expected = Folder(tmp_path_factory.mktemp("journal")), 0
    for steps in spending:
        journal = Journal(folder, "serper")
        before = journal.read()
        base = before["day"]["claimed"]["requests"] if before else 0
        assert base == expected
        own = 0
        for step in steps:
            own += step
            journal.write(claims(base + own))
        expected += own
    assert total(folder) == expected


def test_two_brokers_at_once_do_not_overwrite_each_other(tmp_path):
    folder = Folder(tmp_path)
    Journal(folder, "serper").write(claims(5))
    one, other = Journal(folder, "serper"), Journal(folder, "serper")
    one.read(), other.read()
    one.write(claims(5 + 3))
    other.write(claims(5 + 4))
    assert total(folder) == 12


def test_a_new_day_begins_at_nothing_and_the_month_goes_on(tmp_path):
    folder = Folder(tmp_path)
    Journal(folder, "serper").write(claims(5))
    journal = Journal(folder, "serper")
    journal.read()
    journal.write(
        {
            "day": {"label": "2026-11-22", "claimed": asdict(Spend(2))},
            "month": {"label": "2026-11", "claimed": asdict(Spend(7))},
        }
    )
    read = Journal(folder, "serper").read()
    assert read is not None
    assert read["day"] == {"label": "2026-11-22", "claimed": asdict(Spend(2))}
    assert read["month"]["claimed"]["requests"] == 7


def test_files_of_past_months_go(tmp_path):
    folder = Folder(tmp_path)
    Journal(folder, "serper").write(claims(5, "2026-10-31", "2026-10"))
    Journal(folder, "serper").write(claims(1))
    assert total(folder) == 1
    assert len((folder / "serper").files()) == 1


def test_a_torn_file_is_told_and_the_others_still_count(tmp_path, caplog):
    folder = Folder(tmp_path)
    Journal(folder, "serper").write(claims(5))
    (folder / "serper").write_text("torn.json", '{"day": {"label"')
    assert total(folder) == 5
    assert "torn.json" in caplog.text


def test_endpoints_do_not_mix(tmp_path):
    folder = Folder(tmp_path)
    Journal(folder, "brave").write(claims(5))
    assert total(folder) == 0
