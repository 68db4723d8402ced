import pytest
from yarl import URL

from actors.search.fetch.domains import PRESETS, DomainRules
from actors.search.fetch.urls import web_url
from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError


def open_to(rules, text):
    try:
        rules.check(web_url(text, (80, 443)))
    except ProviderError as error:
        return error.kind is not ErrorKind.BAD_REQUEST
    return True


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/lmms-lab/FVQA",
        "https://huggingface.co/datasets",
        "https://HUGGINGFACE.CO./DataSets/x",
        "https://www.huggingface.co/datasets/x",
        "https://huggingface.co//datasets/x",
        "https://huggingface.co/./datasets/x",
        "https://huggingface.co/docs/../datasets/x",
        "https://huggingface.co/%64atasets/x",
        "https://huggingface.co/%2564atasets/x",
        "https://huggingface.co/docs/%2e%2e/datasets/x",
        "https://huggingface.co/datasets%2Fx",
        "https://huggingface.co/docs%2F..%2Fdatasets/x",
        "https://huggingface.co/docs/%252e%252e/datasets/x",
        "http://huggingface.co:80/datasets/x?download=true#a",
        "https://datasets-server.huggingface.co/rows?dataset=x",
        "https://cas-bridge.xethub.hf.co/x",
        "https://github.com/CaraJ7/MMSearch",
        "https://github.com/caraj7/mmsearch/blob/main/data.json",
        "https://raw.githubusercontent.com/CaraJ7/MMSearch/main/data.json",
        "https://mmsearch.github.io/",
        "https://web.archive.org/web/2024/https://huggingface.co/datasets/x",
        "https://huggingface-co.translate.goog/datasets/x",
    ],
)
def test_the_ready_lists_shut_out(text):
    assert not open_to(DomainRules(presets=PRESETS), text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/docs/transformers",
        "https://huggingface.co/datasetsandmore",
        "https://nothuggingface.co/datasets/x",
        "https://huggingface.co.example.org/datasets/x",
        "https://github.com/CaraJ7/MMSearchers",
        "https://github.com/python/cpython",
        "https://en.wikipedia.org/wiki/Search",
        "https://archive.org/details/x",
        "https://example.org/?u=huggingface.co/datasets",
    ],
)
def test_the_ready_lists_leave_open(text):
    assert open_to(DomainRules(presets=PRESETS), text)


def test_a_rule_holds_for_subdomains_and_for_whole_steps_of_a_path():
    rules = DomainRules(deny=["*.example.org", "other.org/a/b/"])
    assert not open_to(rules, "http://example.org/")
    assert not open_to(rules, "http://a.b.example.org/x")
    assert open_to(rules, "http://myexample.org/")
    assert not open_to(rules, "http://other.org/a/b")
    assert not open_to(rules, "http://other.org/a/b/c")
    assert open_to(rules, "http://other.org/a/bc")
    assert open_to(rules, "http://other.org/a")


def test_what_is_denied_stays_denied_though_it_is_allowed():
    rules = DomainRules(allow=["example.org"], deny=["example.org/secret"])
    assert open_to(rules, "http://www.example.org/x")
    assert not open_to(rules, "http://example.org/secret/x")
    assert not open_to(rules, "http://example.com/")


def test_an_address_is_only_open_by_its_number_when_the_allow_list_is_empty():
    assert open_to(DomainRules(), "http://1.1.1.1/")
    assert not open_to(DomainRules(allow=["example.org"]), "http://1.1.1.1/")


@pytest.mark.parametrize("rule", ["", "org", "https://example.org", "example.org:80", "bücher.de", "/path"])
def test_a_rule_of_another_form_is_told_to_whoever_wrote_it(rule):
    with pytest.raises(UserError, match="domain rule"):
        DomainRules(deny=[rule])


def test_an_unknown_preset_is_told_with_the_known_ones():
    with pytest.raises(UserError, match="benchmarks"):
        DomainRules(presets=["benchmark"])


def test_every_rule_of_the_ready_lists_denies_its_own_address():
    for name, rules in PRESETS.items():
        table = DomainRules(presets=[name])
        for rule in rules:
            with pytest.raises(ProviderError):
                table.check(URL(f"https://{rule}"))
