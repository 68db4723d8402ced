from __future__ import annotations

import io
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.search.settings import ProviderSettings, SearchSettings
from actors.search.store.settings import CassetteSettings, Mode
from workflows.dataset.build import REPORT
from workflows.run_folder import RunFolder
from workflows.serve.about import SHOWN, about, examples, external, uploads
from workflows.serve.settings import KeySettings, RequestSettings, ServeSettings
from workflows.settings import load

LENS = ProviderSettings("actors.search.providers.serpapi:SerpApiLens", name="lens")
LOCAL = ProviderSettings("actors.search.local.image:LocalImageSearch", {"folder": "index"})
OPEN = ServeSettings()
LOCKED = ServeSettings(keys=[KeySettings("somebody", "ab" * 32)])
RETRIEVER = "actors.search.providers.retriever:RetrieverSearch"


def document(search: SearchSettings, **settings):
    return about(ServeSettings(**settings), search, "demo", 3, 4)


def test_the_embedded_world_sends_nothing_anywhere():
    told = document(load("embedded").search)
    assert told["uploads"] == []
    assert [one["external"] for kind in told["search"].values() for one in kind] == [False, False]


def test_the_web_says_where_pictures_go_and_who_is_asked_for_text():
    told = document(load("web").search)
    assert told["uploads"] == ["lens (serpapi.com)"]
    assert told["search"]["text"] == [{"name": "serper", "external": True}, {"name": "brave", "external": True}]


def test_a_store_where_pictures_are_published_is_named():
    lens = ProviderSettings("actors.search.providers.serper:SerperLens", {"store": "s3://pictures/mine"}, name="lens")
    assert uploads(SearchSettings(image=[LOCAL, lens])) == ("lens (google.serper.dev)", "the store pictures")


def test_another_address_of_a_provider_is_the_one_that_is_named():
    moved = replace(LENS, kwargs={"base_url": "https://user:secret@lens.example.org/v1?key=secret"})
    assert uploads(SearchSettings(image=[moved])) == ("lens (lens.example.org)",)


def test_a_provider_of_ones_own_is_external_for_all_that_is_known():
    own = ProviderSettings("collections:OrderedDict", name="own")
    assert uploads(SearchSettings(image=[own], grounder=own)) == ("own",)


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://10.0.0.7", False),
        ("http://[::1]:80", False),
        ("https://retriever.example.org", True),
        ("http://8.8.8.8", True),
        ("http://[bad", True),
    ],
)
def test_a_retriever_is_as_far_off_as_its_address(address, leaves):
    assert external(ProviderSettings(RETRIEVER, {"base_url": address}), SearchSettings()) is leaves


def test_a_metasearch_engine_on_this_machine_still_asks_others():
    searxng = ProviderSettings("actors.search.providers.searxng:SearxngSearch", {"base_url": "http://127.0.0.1"})
    assert external(searxng, SearchSettings())


@pytest.mark.parametrize(("mode", "leaves"), [(Mode.REPLAY, False), (Mode.REPLAY_OR_LIVE, True), (Mode.RECORD, True)])
def test_only_a_cassette_that_never_asks_keeps_pictures_here(mode, leaves):
    search = SearchSettings(image=[LENS], cassette=CassetteSettings(mode, "tape"))
    assert bool(uploads(search)) is leaves


def test_a_page_that_shares_a_prefix_with_ours_is_not_ours():
    assert external(ProviderSettings("actors.search.localised:Search"), SearchSettings())


def test_limits_are_those_of_a_request_and_of_the_engine():
    few, many = (document(SearchSettings(), request=RequestSettings(pictures=n))["limits"] for n in (2, 8))
    assert (few["pictures"], many["pictures"]) == (2, 4)
    assert many["seconds"] == RequestSettings().seconds


def test_nothing_secret_is_told():
    key = KeySettings("somebody", "ab" * 32)
    lens = replace(LENS, kwargs={"key_env": "MY_SECRET"})
    told = json.dumps(document(SearchSettings(image=[lens], quota_folder="/private"), keys=[key]))
    assert json.loads(told)["keys"] is True
    assert not any(word in told for word in ("somebody", key.sha256, "MY_SECRET", "/private"))


def picture(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def write_questions(run: RunFolder, kinds: list[str], pictures: int = 1) -> None:
    rows = [
        {
            "data_id": f"q{i}",
            "prompt": [{"role": "user", "content": f"<image>what is {i}?"}],
            "images": [{"bytes": picture(i)}] * pictures,
            "reward_model": {"ground_truth": "secret", "candidate_answers": "[]"},
            "kind": kind,
        }
        for i, kind in enumerate(kinds)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    run.questions("test").write_bytes("part-0.parquet", sink.getvalue())


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.at(str(tmp_path))


def test_examples_are_of_as_many_kinds_as_there_are(run):
    write_questions(run, ["looking"] * 9 + ["image_text", "text", "unheard_of"])
    shown = examples(run, run.images(), OPEN)
    assert [one.question for one in shown[:4]] == ["what is 9?", "what is 0?", "what is 10?", "what is 11?"]
    assert len(shown) == SHOWN
    assert (shown[0].data, shown[0].media_type) == (picture(9), "image/png")
    told = about(ServeSettings(), SearchSettings(), "demo", 3, 4, shown)["examples"]
    assert told[1] == {"question": "what is 0?", "picture": "examples/1"}
    assert "secret" not in json.dumps(told)


def test_a_question_of_two_pictures_is_no_example(run):
    write_questions(run, ["looking"], pictures=2)
    assert examples(run, run.images(), OPEN) == []


def test_a_run_without_questions_has_no_examples(run):
    assert examples(run, run.images(), OPEN) == []


def test_an_unreadable_dataset_has_no_examples(run):
    run.questions("test").write_bytes("part-0.parquet", b"no parquet")
    assert examples(run, run.images(), OPEN) == []


def test_pictures_that_are_gone_are_passed_over(run):
    write_questions(run, ["looking", "text"])
    images = run.images()
    first = examples(run, images, OPEN)
    assert len(first) == 2
    assert examples(run, Forgetful(images), OPEN) == first[1:]


@pytest.mark.parametrize("source", ["workflows.embedded.source:EmbeddedSource", "workflows.dataset.fvqa:FvqaSource"])
def test_who_has_no_key_is_shown_questions_of_the_embedded_world_alone(run, source):
    write_questions(run, ["looking"])
    report = {"questions/test": {"identity": {"source": [source, {}]}}}
    run.dataset.write_json(REPORT, report)
    assert len(examples(run, run.images(), OPEN)) == 1
    assert len(examples(run, run.images(), LOCKED)) == source.startswith("workflows.embedded.")


@pytest.mark.parametrize(
    "report",
    [None, b"no json", b"[]", b"{}", b'{"questions/test": null}', b'{"questions/test":{"identity":{"source":[7]}}}'],
)
def test_questions_of_unknown_origin_are_shown_to_nobody_without_a_key(run, report):
    write_questions(run, ["looking"])
    if report is not None:
        run.dataset.write_bytes(REPORT, report)
    assert examples(run, run.images(), LOCKED) == []


class Forgetful:
    """Has lost the first picture that it is asked for."""

    def __init__(self, images) -> None:
        self._images, self._asked = images, 0
        self.put, self.has = images.put, images.has

    def get(self, ref):
        from actors.agent.seams import ImageMissing

        self._asked += 1
        if self._asked == 1:
            raise ImageMissing("gone")
        return self._images.get(ref)
