"""What a plain client reads, through OpenAI's own types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from actors.agent.trajectory import Evidence, ImageRef
from tests.unit.actors.agent.stage import Tools, ask, found, say
from tests.unit.workflows.serve.told import tell
from workflows.serve.answers import citations_of, completion, usage, web_address

CITED = "<reason>seen</reason><answer>星 Ilse 👩‍🚀 Tarn [1] and [2][7]</answer>"
PAGES = tuple(Evidence(n, f"page\n{n}", "text", url=f"https://web.example/{n}") for n in (1, 2))


def test_openai_s_types_take_the_answer_and_keep_what_is_beside_it():
    told = tell(ask(), CITED, tools=Tools(found("one", "two")), pace=0)
    read = ChatCompletion.model_validate(completion("chatcmpl-1", 5, "demo", [told.choice, told.choice]))
    first, used = read.choices[0], read.usage
    assert first.model_extra is not None
    assert first.message.model_extra is not None
    assert used is not None
    assert first.message.content == "星 Ilse 👩‍🚀 Tarn [1] and [2][7]"
    assert [note.type for note in first.message.annotations or ()] == ["url_citation"] * 2
    assert first.model_extra["weights_version"] == 3
    assert [step["type"] for step in first.model_extra["search_steps"]] == [
        "turn", "reasoning", "search", "result", "turn", "reasoning",
    ]  # fmt: skip
    assert first.message.model_extra["reasoning_content"] == "r\n\nseen"
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.model_extra == {"tool_calls": 2, "cost_usd": 0.0}
    assert [choice.index for choice in read.choices] == [0, 1]


def test_annotations_name_the_citation_in_code_points_and_only_evidence_that_there_is():
    content = "星 Ilse 👩‍🚀 Tarn [1] and [2][7]"
    notes = [note["url_citation"] for note in citations_of(content, PAGES)]
    assert [content[note["start_index"] : note["end_index"]] for note in notes] == ["[1]", "[2]"]
    assert [(note["title"], note["url"]) for note in notes] == [
        ("page 1", "https://web.example/1"),
        ("page 2", "https://web.example/2"),
    ]


@given(st.text(alphabet="a[]12 星\U0001f680\n", max_size=40))
def test_wherever_a_citation_stands_its_offsets_are_those_of_the_content(content):
    for note in (annotation["url_citation"] for annotation in citations_of(content, PAGES)):
        number = int(content[note["start_index"] + 1 : note["end_index"] - 1])
        assert content[note["start_index"] : note["end_index"]] in (f"[{number}]", f"[0{number}]", f"[00{number}]")
        assert note["url"].endswith(f"/{number}")


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "", "//web.example", "file:///etc/passwd", "\x00https://a"]
)
def test_only_addresses_of_the_web_are_links(url):
    assert web_address(url) in ("", "https://a")


def test_choices_share_the_question_and_each_pays_for_its_own_searches():
    one, two = tell(ask(), say(), pace=0).choice, tell(say("somebody else"), pace=0).choice
    used = usage([one, two])
    assert one.question_tokens == two.question_tokens > 0
    assert used["prompt_tokens"] == one.question_tokens + one.found_tokens
    assert used["completion_tokens"] == one.completion_tokens + two.completion_tokens
    assert used["tool_calls"] == 1
    assert usage([])["total_tokens"] == 0


def test_of_much_evidence_the_newest_stands_in_for_an_answer_and_each_piece_is_short():
    pages = found(*[f"page {n} " + "long " * 100 for n in range(6)], thumbnail=ImageRef("a" * 64, 2, 2))
    content = tell(ask(), "no tags", "no tags", tools=Tools(pages), preset="mmsearch_r1", pace=0).choice.content
    first, *rest = content.splitlines()
    assert first == "There is no answer within 3 turns. What was found:"
    assert [line[:12] for line in rest] == ["[4] velmora:", "[5] velmora:", "[6] velmora:"]
    assert all(len(line) <= 204 for line in rest)
