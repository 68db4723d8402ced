from actors.agent.trajectory import Outcome
from actors.search.ledger import Ledger, LedgerRow, merged


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
