import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.agent.trajectory import Tool, ToolRequest
from actors.search.build import build_gateway, endpoint
from actors.search.local.text import build_text_index
from actors.search.settings import ProviderSettings, SearchSettings
from cluster.errors import UserError
from tests.unit.actors.search.search_world import FolderImages

WORLD = "tests.unit.actors.search.search_world"


def test_a_provider_is_made_from_its_dotted_path_and_named_after_its_class():
    made = endpoint(ProviderSettings(path=f"{WORLD}:Sentences", usd_per_call=0.5))
    assert (made.name, made.usd_per_call, type(made.provider).__name__) == ("Sentences", 0.5, "Sentences")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ProviderSettings(path="Sentences"), "not of the form"),
        (ProviderSettings(path="nowhere.at.all:X"), "cannot be imported"),
        (ProviderSettings(path=f"{WORLD}:Missing"), "cannot be imported"),
        (ProviderSettings(path=f"{WORLD}:Sentences", kwargs={"depth": 3}), "does not take these kwargs"),
    ],
)
def test_a_provider_that_cannot_be_made_is_one_clear_sentence(settings, said):
    with pytest.raises(UserError, match=said):
        endpoint(settings)


def test_a_gateway_without_any_provider_can_be_built(tmp_path):
    assert build_gateway(SearchSettings(), FolderImages(str(tmp_path))).ledger.totals.calls == 0


def test_the_settings_import_nothing_heavy():
    code = "import sys, actors.search.settings, actors.reward.settings; print({'torch','ray','vllm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


async def test_a_gateway_over_a_local_index_opens_answers_and_closes(tmp_path):
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"title": ["Velmora"], "text": ["Velmora was founded by Ilse Dorn."]}), corpus)
    build_text_index([str(corpus)], str(tmp_path / "index"))
    local = ProviderSettings(
        path="actors.search.local.text:LocalTextSearch", kwargs={"folder": str(tmp_path / "index")}
    )
    gateway = build_gateway(SearchSettings(text=[local]), FolderImages(str(tmp_path)))
    await gateway.open()
    result = await gateway.call(ToolRequest(Tool.TEXT_SEARCH, "who founded Velmora"), deadline=time.monotonic() + 30)
    await gateway.close()
    assert result.evidence[0].text == "Velmora was founded by Ilse Dorn."
