"""What a service may be told, and that nobody else comes in by default."""

import subprocess
import sys

import pytest

from cluster.errors import UserError
from workflows.serve.keys import digest
from workflows.serve.settings import KeySettings, ServeSettings, is_loopback
from workflows.settings import load

HASH = digest("mms-a")
KEY = f"{{name: ada, sha256: {HASH}}}"


def refusal(*overrides):
    with pytest.raises(UserError) as refused:
        load(None, overrides)
    return refused.value.message


def test_by_default_only_this_machine_reaches_the_service():
    settings = load().serve
    assert (settings.host, settings.keys, settings.origins) == ("127.0.0.1", [], [])
    assert is_loopback(settings.host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.1", ""])
def test_others_reach_it_only_with_keys(host):
    said = refusal(f"serve.host='{host}'")
    assert "mmsearch serve key NAME" in said
    assert load(None, [f"serve.host='{host}'", f"serve.keys=[{KEY}]"]).serve.keys == [KeySettings("ada", HASH)]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_keys(host):
    assert load(None, [f"serve.host='{host}'"]).serve.host == host


@pytest.mark.parametrize("host", ["localhost.example.org", "0.0.0.0", "", "127.0.0.1.nip.io", "::ffff:8.8.8.8"])
def test_what_only_looks_like_loopback_is_none(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("serve.keys=[{name: '', sha256: a}]", "name is ''"),
        (f"serve.keys=[{{name: 'a b', sha256: {HASH}}}]", "name is 'a b'"),
        (f"serve.keys=[{{name: anybody, sha256: {HASH}}}]", "anybody is taken"),
        (f"serve.keys=[{KEY}, {KEY}]", "one name or one hash"),
        (f"serve.keys=[{KEY}, {{name: bob, sha256: {HASH}}}]", "one name or one hash"),
        (f"serve.keys=[{{name: ada, sha256: {HASH}, requests_per_minute: 0}}]", "requests_per_minute"),
        (f"serve.keys=[{{name: ada, sha256: {HASH}, requests_per_minute: .inf}}]", "requests_per_minute"),
        (f"serve.keys=[{{name: ada, sha256: {HASH}, usd_per_day: -1}}]", "usd_per_day"),
        ("serve.origins=['*']", "no \\*"),
        ("serve.origins=['https://example.org/']", "no path"),
        ("serve.agents=2", "max_agents=1"),
        ("serve.search_replicas=2", "max_search_replicas=1"),
        ("serve.port=0", "serve.port"),
        ("serve.request.seconds=0", "serve.request.seconds"),
        ("serve.request.seconds=.inf", "serve.request.seconds"),
        ("serve.request.pictures=-1", "serve.request.pictures"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(override, says):
    with pytest.raises(UserError, match=says):
        load(None, [override])


def test_a_key_that_is_written_where_its_hash_belongs_is_not_repeated():
    said = refusal("serve.keys=[{name: ada, sha256: mms-the-key-itself}]")
    assert "mms-the-key-itself" not in said
    assert "mmsearch serve key" in said


def test_an_origin_may_have_a_port():
    assert load(None, ["serve.origins=['https://example.org:8443']"]).serve.origins == ["https://example.org:8443"]


def test_settings_import_nothing_heavy():
    code = (
        "import sys, workflows.settings;"
        "print([name for name in ('torch', 'ray', 'vllm', 'pydantic', 'fastapi') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_defaults_pass_their_own_check():
    ServeSettings().check()
