"""A page about a whole run, about two, about half of one, and about one that means harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from actors.agent.protocol import Grammar
from actors.agent.trajectory import ImageRef, PlacedImage, Segment, SegmentKind
from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.workflows.report.made_run import HOSTILE, asked, made_run, one, played, without_record, write_metrics
from workflows.report.episodes import document
from workflows.report.page import embedded
from workflows.report.run import write_report
from workflows.report.sources import MARKS, names_of, read_run, run_at


class Tags(HTMLParser):
    """What a browser would see as elements, and where they point."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


def html(written) -> str:
    return written.folder.read_text(written.name)


def data(text: str) -> dict:
    return json.loads(one(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_the_page_holds_everything_and_asks_nobody_for_anything(tmp_path):
    text = html(write_report([made_run(tmp_path / "run")]))
    tags = Tags(text)
    assert not {"img", "link", "iframe", "base"} & set(tags.names)
    places = {name: value for name, value in tags.attributes if name in ("src", "href", "action", "style")}
    assert all(value.startswith("#") for value in places.values())
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name == "style"]
    for words in ("Results", "Behaviour", "Training", "Episodes", "held-out questions", "mismatch KL", "publish lag"):
        assert words in text


def test_the_policy_names_the_hash_of_every_script_and_of_the_style(tmp_path):
    text = html(write_report([made_run(tmp_path / "run")]))
    policy = one(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    inline = [part for _, part in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL)]
    assert len(inline) == 4
    for part in inline:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" in policy


def test_what_a_model_or_the_web_wrote_is_never_markup(tmp_path):
    folder = made_run(tmp_path / HOSTILE.replace("/", "_"))
    text = html(write_report([folder]))
    assert HOSTILE not in text
    assert "onerror" not in [name for name, _ in Tags(text).attributes]
    assert text.count("</script>") == 4
    answers = {episode["answer"] for episode in data(text)["episodes"]}
    assert answers == {"verkuston", HOSTILE}


def test_embedded_data_comes_back_as_it_was_and_cannot_end_its_element():
    value = {"a": f"{HOSTILE} & \u2028 é 漢"}
    assert json.loads(embedded(value)) == value
    assert not set("<>&\u2028") & set(embedded(value))
    assert embedded("half a pair: \ud800").isprintable()


def test_an_episode_shows_turns_crops_evidence_and_its_reward(tmp_path):
    found = data(html(write_report([made_run(tmp_path / "run")])))
    episode = next(e for e in found["episodes"] if e["arm"] == "rl" and e["kind"] == "image")
    first, last = episode["turns"]
    assert first["action"] == 'search image: "red thing"'
    assert first["call"]["box"] == [4, 4, 20, 20]
    assert first["call"]["evidence"][0]["text"] == "it is verkuston."
    assert last["answer"] == "verkuston"
    assert episode["reward"] == {"total": 1.0, "accuracy": 1.0, "format": 1.0, "penalty": 0.9, "searches": 1}
    assert (episode["tools"], episode["versions"], episode["outcome"]) == (["crop"], [1], "right")
    assert found["pictures"][episode["images"][0]]["src"].startswith("data:image/png;base64,")


def test_a_crop_that_the_model_was_shown_is_told_with_its_number(tmp_path):
    ref, crop = ImageRef("a" * 64, 32, 32), ImageRef("b" * 64, 16, 16)
    it = played(asked(0, "image", ref), True, ref)
    call = it.tool_calls[0]
    returned = replace(it, tool_calls=(replace(call, result=replace(call.result, crop=crop)),))
    observed = Segment(
        SegmentKind.OBSERVATION, np.array([1, 2], np.int32), images=(PlacedImage(0, crop, 4), PlacedImage(1, ref, 4))
    )
    prompt, action, answer = it.segments
    shown = replace(returned, segments=(prompt, action, observed, answer))
    numbers = [
        [turn["call"].get("crop_number") for turn in told["turns"] if "call" in turn]
        for told in (
            document("run", "rl", {"question_id": "q"}, episode, Grammar()) for episode in (it, returned, shown)
        )
    ]
    assert numbers == [[None], [None], [2]]  # one that did not fit is not told as shown


def test_the_arms_show_the_same_questions_and_no_more_than_asked_for(tmp_path):
    folder = made_run(tmp_path / "run")
    episodes = data(html(write_report([folder], episodes=5)))["episodes"]
    by_arm = {arm: {e["question_id"] for e in episodes if e["arm"] == arm} for arm in ("sft", "rl")}
    assert by_arm["sft"] == by_arm["rl"]
    assert len(by_arm["rl"]) == 5
    assert {e["kind"] for e in episodes if e["arm"] == "rl"} == {"looking", "image", "text"}
    assert sum(e["step"] is not None for e in episodes) <= 5
    assert data(html(write_report([folder], episodes=5)))["episodes"] == episodes


def test_a_lost_picture_is_told_and_the_rest_is_shown(tmp_path):
    folder = made_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/blobs")
    text = html(write_report([folder]))
    assert "1 picture could not be found." in text
    assert data(text)["pictures"] == {}
    assert data(text)["episodes"]


def test_records_of_another_form_are_shown_by_their_text(tmp_path):
    folder = made_run(tmp_path / "run")
    without_record(folder, "rl")
    episode = next(e for e in data(html(write_report([folder])))["episodes"] if e["arm"] == "rl")
    assert episode["turns"] == []
    assert episode["text"].startswith("[prompt]")


def test_without_an_evaluation_the_page_says_what_makes_one(tmp_path):
    folder = made_run(tmp_path / "run")
    folder.delete("evaluate")
    written = write_report([folder])
    assert written.missing[0][1] == f"mmsearch evaluate run.storage={folder}"
    assert f"mmsearch evaluate run.storage={folder}" in html(written)
    assert {e["arm"] for e in data(html(written))["episodes"]} == {"GRPO rollouts"}
    assert 'id="results"' not in html(written)


def test_a_run_of_two_files_has_a_page_too(tmp_path):
    write_metrics(Folder(tmp_path / "run/sft"), [{"loss": None}, {"loss": 1.0}])
    text = html(write_report([Folder(tmp_path / "run")]))
    assert "Nothing was evaluated yet." in text
    assert 'id="sft-0-t"' in text
    assert 'id="episodes"' not in text


def test_damaged_files_are_noted_and_left_out(tmp_path):
    folder = made_run(tmp_path / "run")
    lines = folder.read_text("grpo/metrics.jsonl")
    folder.write_text("grpo/metrics.jsonl", lines + '{"step": 4, "sampled/rew\n[]\n{"step": NaN}\n')
    folder.write_text("demo.json", "{")
    folder.write_bytes("evaluate/rl.parquet", b"PAR1 no more")
    run = read_run(folder, "run")
    assert [line["step"] for line in run.curves["grpo"]] == [1, 2, 3]
    assert run.notes == ("demo.json cannot be read and is left out.", "grpo/metrics.jsonl: 3 damaged lines left out.")
    text = html(write_report([folder]))
    assert "rl.parquet cannot be read: its episodes are left out." in text
    assert "GRPO rollouts" in {e["arm"] for e in data(text)["episodes"]}


def test_two_runs_stand_side_by_side_with_the_settings_that_differ(tmp_path):
    runs = [made_run(tmp_path / "a", reward={"penalty": 0.1}), made_run(tmp_path / "b", reward={"penalty": 0.0})]
    text = html(write_report(runs))
    assert "reward.penalty" in text
    assert "run.storage</th>" not in text
    arms = re.findall(r'<th scope="row" title="[a-z]+ weights">([^<]*)</th>', text)
    assert arms == ["sft · a", "sft · b", "rl · a", "rl · b"]
    assert {e["run"] for e in data(text)["episodes"]} == {"a", "b"}


def test_runs_that_differ_in_seeds_alone_are_pooled_and_shown_by_themselves_on_demand(tmp_path):
    text = html(write_report([made_run(tmp_path / "a"), made_run(tmp_path / "b", seed=1)]))
    assert "Over 2 runs that differ in seeds alone" in text
    assert "in 2 runs that differ in seeds alone: sft" in text
    assert "Each run by itself" in text


def test_the_file_goes_where_it_is_wanted(tmp_path):
    folder = made_run(tmp_path / "run")
    (tmp_path / "there").mkdir()
    assert write_report([folder]).address == str(tmp_path / "run/report.html")
    assert write_report([folder], str(tmp_path / "there")).address == str(tmp_path / "there/report.html")
    assert write_report([folder], str(tmp_path / "new/mine.html")).address == str(tmp_path / "new/mine.html")
    assert (tmp_path / "new/mine.html").stat().st_size == write_report([folder], str(tmp_path / "new/mine.html")).size


def test_what_is_no_run_and_what_is_named_twice_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"There is no run at .*runs/nothing or .*/nothing: give the folder"):
        run_at("nothing")
    with pytest.raises(UserError, match="There is no run at"):
        write_report([Folder(tmp_path)])
    folder = made_run(tmp_path / "runs/mine")
    assert run_at("mine") == folder
    assert run_at("runs/mine") == folder
    with pytest.raises(UserError, match="named twice"):
        write_report([folder, folder])


def test_names_are_as_long_as_it_takes_to_tell_runs_apart():
    assert names_of([Folder("/x/a"), Folder("/x/b")]) == ["a", "b"]
    assert names_of([Folder("/x/run"), Folder("s3://y/run")]) == ["x/run", "y/run"]


@pytest.mark.parametrize("mark", MARKS)
def test_a_folder_with_any_part_of_a_run_is_one(tmp_path, mark):
    Folder(tmp_path).write_text(mark, "{}")
    assert write_report([Folder(tmp_path)]).size > 0
