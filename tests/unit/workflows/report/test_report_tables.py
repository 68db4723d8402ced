"""Tables from results.json, of today's form and of older ones."""

from __future__ import annotations

import pytest

from cluster.storage import Folder
from workflows.report.comparing import differences, seeds_alone
from workflows.report.curves import Wanted, grpo_charts, idle, overlaid, points_of, supervised_charts
from workflows.report.sources import RunFacts
from workflows.report.tables import Cell, cells, confusion, matrix, whole_arm

OLD = {
    "overall": {"episodes": 500, "exact_match": 0.264, "text_searches": 0.5, "image_searches": 0.25, "failed": 0},
    "labels": {"free": {"search_ratio": 0.01}},
}
NEW = {
    "overall": {"episodes": 500, "exact_match": 0.8144, "searches": 1.3, "recovery": None, "cost_usd": 0.002},
    "intervals": {"exact_match": [0.78, 0.85]},
    "labels": {"free": {"search_ratio": 0.14}, "required": {"search_ratio": 1.0}},
    "label_intervals": {"required": {"search_ratio": [0.99, 1.0]}},
    "kinds": {"two_hops": {"exact_match": 0.5, "search_ratio": 1.0}},
    "kind_intervals": {"two_hops": {"exact_match": [0.4, 0.6]}},
    "tags": {"crowded": {"exact_match": 0.7}},
    "confusion": {"crop or image_search": {"crop": 8, "text_search": 2}, "none": {"none": 5}},
}


def run(name="a", curves=None, **settings):
    return RunFacts(name, Folder(f"/x/{name}"), curves=curves or {}, settings=settings)


def shown(*documents):
    columns, rows = cells([whole_arm(document) for document in documents])
    return [{c.heading: cell for c, cell in zip(columns, row, strict=True)} for row in rows]


def test_a_number_stands_with_its_interval_and_the_best_is_marked():
    old, new = shown(OLD, NEW)
    assert new["exact match"] == Cell("81.4", "78.0–85.0", best=True)
    assert old["exact match"] == Cell("26.4", "", best=False)
    assert (new["searched: required"].text, new["searched: required"].low_high) == ("100.0", "99.0–100.0")
    assert old["searched: required"].text == "–"


def test_calls_are_added_up_where_a_run_tells_them_by_tool():
    old, new = shown(OLD, NEW)
    assert (old["calls"].text, new["calls"].text) == ("0.75", "1.30")


def test_what_no_run_tells_has_no_column():
    (old,) = shown(OLD)
    assert not {"judged", "recovery", "cost, $", "failed", "F1"} & set(old)
    assert "cost, $" in shown(OLD, NEW)[0]
    assert shown({"overall": "nonsense", "labels": None}) == [{}]


def test_the_breakdown_lists_needs_kinds_and_tags_of_every_arm():
    rows = {name: row for _, name, row in matrix({"old": OLD, "new": NEW})}
    assert list(rows) == ["search-free", "search-required", "two hops", "crowded"]
    assert [cell.text for cell, _ in rows["two hops"]] == ["–", "50.0"]
    assert rows["two hops"][1][0].low_high == "40.0–60.0"
    assert rows["two hops"][1][1] == "100.0"


def test_first_tools_are_told_right_against_chosen_in_words():
    table = confusion(NEW)
    assert table is not None
    rights, chosen, counts = table
    assert rights == ["none", "crop or whole image"]
    assert chosen == ["none", "text", "whole image", "crop"]
    assert counts == [[5, 0, 0, 0], [0, 2, 0, 8]]
    assert confusion(OLD) is None


def test_a_value_that_is_null_is_a_gap_and_one_that_is_not_measured_is_skipped():
    steps = [{"step": 1, "a": 0.5}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": "x"}, {"step": 5, "a": 1.0}]
    assert points_of(steps, "a") == ((1.0, 0.5), (2.0, None), (4.0, None), (5.0, 1.0))


def test_curves_that_are_not_there_make_no_chart():
    assert grpo_charts([run(curves={"grpo": [{"step": 1, "other": 1.0}]}), run("b")]) == []
    titles = [chart.title for chart in grpo_charts([run(curves={"grpo": [{"step": 1, "publish_lag_s": 1.0}]})])]
    assert titles == ["publish lag"]
    assert [c.title for c in supervised_charts([run(curves={"sft": [{"step": 1, "exact/a": 1.0}]})], "sft")] == [
        "exact answers"
    ]


def test_of_one_run_colours_are_curves_and_of_several_they_are_runs():
    wanted = Wanted("t", "s", (("a", ("a",)), ("b", ("b",))))
    steps = [{"step": 1, "a": 1.0, "b": 2.0}]
    assert [(line.name, line.colour, line.dash) for line in overlaid(wanted, [("x", steps)]).lines] == [
        ("a", 0, 0), ("b", 1, 0),
    ]  # fmt: skip
    assert [(line.name, line.colour, line.dash) for line in overlaid(wanted, [("x", steps), ("y", steps)]).lines] == [
        ("x · a", 0, 0), ("x · b", 0, 1), ("y · a", 1, 0), ("y · b", 1, 1),
    ]  # fmt: skip


def test_a_part_that_is_the_whole_is_drawn_once():
    wanted = Wanted("wasted", "s", (("all", ("all",)), ("filtered", ("f",)), ("stale", ("s",))))
    steps = [{"step": 1, "all": 3.0, "f": 3.0, "s": 0.0}, {"step": 2, "all": 4.0, "f": 4.0, "s": 0.0}]
    assert [line.name for line in overlaid(wanted, [("x", steps)]).lines] == ["all"]


def test_idle_times_are_shares_that_fill_the_whole():
    steps = [
        {"step": 1, "idle/learner_publish_s": 1.0, "idle/learner_long_tail_s": 3.0, "idle/learner_busy_share": 0.6},
        {"step": 2, "idle/learner_busy_share": 1.0},
        {"step": 3},
    ]
    chart = idle("learner", "t", steps)
    shares = {line.name: [y for _, y in line.points] for line in chart.lines}
    assert shares["busy"] == [0.6, 1.0, None]
    assert shares["publish"] == [pytest.approx(0.1), 0.0, None]
    assert shares["long tail"] == [pytest.approx(0.3), 0.0, None]


def test_places_are_no_differences_and_seeds_alone_make_repetitions():
    a = run("a", **{"run.name": "a", "run.seed": 0, "x": 1, "provider.folder": "/x/a/world"})
    b = run("b", **{"run.name": "b", "run.seed": 1, "x": 1, "provider.folder": "/x/b/world"})
    c = run("c", **{"run.name": "c", "run.seed": 1, "x": 2})
    assert [d.key for d in differences([a, b])] == ["run.seed"]
    assert seeds_alone([a, b])
    assert not seeds_alone([a, c])
    assert not seeds_alone([a])
    assert not seeds_alone([a, run("d")])
    assert [(d.key, d.values) for d in differences([a, c]) if d.key == "x"] == [("x", ("1", "2"))]
