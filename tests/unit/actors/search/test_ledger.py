from actors.agent.trajectory import Outcome
from actors.search.ledger import Ledger, LedgerRow, Totals, merged


def row(tool, outcome=Outcome.OK, cost=0.5, cached=False):
    return LedgerRow(1.0, tool, "p", outcome, 2.0, cost, cached, 1)


def test_totals_count_rows_that_are_no_longer_kept():
    ledger = Ledger(keep=2)
    for tool in ("text_search", "text_search", "image_search"):
        ledger.enter(row(tool))
    assert len(ledger.rows) == 2
    assert ledger.totals.calls == 3
    assert ledger.totals.cost_usd == 1.5
    assert ledger.totals.by_tool == {"image_search": 1, "text_search": 2}


def test_totals_of_workers_add_up():
    one, other = Ledger(9), Ledger(9)
    one.enter(row("text_search", Outcome.EMPTY))
    other.enter(row("text_search", cached=True))
    both = merged([one.totals, other.totals])
    assert (both.calls, both.cached, both.latency_s) == (2, 1, 4.0)
    assert both.by_outcome == {"empty": 1, "ok": 1}
    assert merged([]).calls == 0


def test_a_line_for_the_end_of_a_run_says_what_was_asked_and_what_was_remembered():
    totals = Totals(calls=2000, cached=1360, requests=577, by_outcome={"ok": 1990, "refused": 10})
    assert str(totals) == "2,000 calls of tools, 68% from a cache, 577 requests, 10 failed"
    taped = Totals(calls=2000, cached=1800, requests=174, replayed=1716, unrecorded=204)
    assert str(taped) == (
        "2,000 calls of tools, 90% from a cache or the cassette (89.4% of what it was asked for was recorded),"
        " 174 requests"
    )
    assert str(Totals()) == "no searches"
