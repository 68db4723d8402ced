"""`mmsearch search` and `mmsearch quota`: a call from the shell, and what is left afterwards."""

import json
import time

import pytest

from actors.search.quota.settings import BudgetSettings, QuotaSettings
from actors.search.settings import ProviderSettings
from tests.unit.actors.search.search_world import scene
from workflows import quota, try_search
from workflows.settings import load

WORLD = "tests.unit.actors.search.search_world"


@pytest.fixture
def settings(tmp_path):
    """A configuration with a text engine that has a budget of two requests, and a picture engine."""
    text = f"{{path: '{WORLD}:Sentences', name: sentences, usd_per_call: 0.5, quota: {{per_day: {{requests: 2}}}}}}"
    return load(
        None,
        [
            f"run.storage={tmp_path / 'run'}",
            f"search.text=[{text}]",
            f"search.image=[{{path: '{WORLD}:Colours'}}]",
            f"search.grounder={{path: '{WORLD}:Squares'}}",
        ],
    )


def test_a_text_search_prints_evidence_provider_time_and_cost(settings, capsys):
    try_search.run(settings, "who founded Velmora")
    said = capsys.readouterr().out
    assert "Ilse Tarn" in said
    assert "ok: sentences" in said
    assert "1 requests, 0.5000 USD" in said


def test_a_picture_can_be_searched_by_a_part_of_it(settings, tmp_path, capsys):
    picture = tmp_path / "scene.png"
    picture.write_bytes(scene("red", "blue"))
    try_search.run(settings, "the blue square", picture, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["crop_box"] is not None
    assert found["evidence"][0]["title"] == "A blue square"


def test_a_spent_budget_ends_with_two_and_names_the_setting(settings, capsys):
    for query in ("velmora", "quentix"):
        try_search.run(settings, query)
    with pytest.raises(SystemExit) as ended:
        try_search.run(settings, "brakka")
    assert ended.value.code == 2
    assert "per_day.requests" in capsys.readouterr().out.replace("\n", " ")


def test_what_was_spent_from_the_shell_is_what_quota_shows(settings):
    try_search.run(settings, "velmora")
    day, month = quota.standings(quota.endpoints(settings), settings.search.quota_folder, time.time())
    assert (day["endpoint"], day["window"], day["requests"], day["usd"]) == ("sentences", "day", 1, 0.5)
    assert day["left"] == {"requests": 1}
    assert month["left"] == {}


def test_endpoints_without_a_quota_are_not_in_the_table():
    bounded = ProviderSettings(path=f"{WORLD}:Sentences", quota=QuotaSettings(per_month=BudgetSettings(usd=3)))
    rows = quota.standings([bounded, ProviderSettings(path=f"{WORLD}:Colours")], "", time.time())
    assert [row["endpoint"] for row in rows] == ["Sentences", "Sentences"]
    assert rows[1]["left"] == {"usd": 3}


JUDGED = ["evaluate.judge.quota={per_month: {tokens: 1000}}", "evaluate.judge.api_key_env='\"\"'"]


def test_a_judge_with_a_quota_is_in_the_table_where_there_is_one(tmp_path, capsys):
    bare = load(None, [f"run.storage={tmp_path}", *JUDGED])
    assert "judge" not in [row["endpoint"] for row in quota.standings(quota.endpoints(bare), "", time.time())]
    settings = load(None, [f"run.storage={tmp_path}", "evaluate.judge.model=a-judge", *JUDGED])
    quota.run(settings, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["endpoint"], row["window"], row["left"]) for row in rows[-2:]] == [
        ("judge", "day", {}),
        ("judge", "month", {"tokens": 1000}),
    ]


def test_endpoints_that_share_a_quota_are_one_in_the_table():
    shared = ProviderSettings(path=f"{WORLD}:Sentences", name="shared", quota=QuotaSettings())
    assert len(quota.standings([shared, shared], "", time.time())) == 2  # a day and a month
