import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from actors.search.fetch.urls import web_url
from actors.search.seams import ErrorKind, ProviderError

PORTS = (80, 443)

HOSTILE = {
    "decimal": "http://2130706433/",
    "octal": "http://0177.0.0.1/",
    "octal of eight parts": "http://017700000001/",
    "hexadecimal": "http://0x7f000001/",
    "hexadecimal parts": "http://0x7f.0x0.0x0.0x1/",
    "short": "http://127.1/",
    "zero": "http://0/",
    "five parts": "http://1.2.3.4.5/",
    "a part above 255": "http://1.2.3.256/",
    "padded": "http://001.1.1.1/",
    "a number at the end of a name": "http://example.0x1/",
    "a bare 0x": "http://example.0x/",
    "percent-encoded host": "http://%31%32%37.0.0.1/",
    "percent-encoded null": "http://1.1.1.1%00.example.org/",
    "zone id": "http://[fe80::1%25eth0]/",
    "bare zone id": "http://[fe80::1%eth0]/",
    "torn brackets": "http://[::1",
    "userinfo": "http://user:secret@example.org/",
    "only a user": "http://user@example.org/",
    "an empty user": "http://@example.org/",
    "an empty user and password": "http://:@example.org/",
    "userinfo that looks like a host": "http://example.org@10.0.0.1/",
    "userinfo with an encoded slash": "http://example.org%2f@10.0.0.1/",
    "backslash": "http://example.org\\@10.0.0.1/",
    "backslashes for slashes": "http:\\\\example.org\\",
    "line break": "http://example.org/\r\nHost: 10.0.0.1",
    "null": "http://example.org/\x00",
    "tab": "http://exa\tmple.org/",
    "lone surrogate": "http://example.org/\ud800",
    "space in the host": "http://exa mple.org/",
    "file": "file:///etc/passwd",
    "file with a host": "file://example.org/etc/passwd",
    "ftp": "ftp://example.org/",
    "gopher": "gopher://example.org:80/_GET",
    "data": "data:text/html,hello",
    "javascript": "javascript:alert(1)",
    "blob": "blob:http://example.org/x",
    "jar": "jar:http://example.org/!/x",
    "view-source": "view-source:http://example.org/",
    "websocket": "ws://example.org/",
    "unix socket": "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "no scheme": "example.org/x",
    "a scheme's relative": "//example.org/x",
    "no host": "http:///x",
    "no slashes": "http:x",
    "empty": "",
    "only spaces": "  ",
    "ssh's port": "http://example.org:22/",
    "a database's port": "http://example.org:6379/",
    "port 0": "http://example.org:0/",
    "port 99999": "http://example.org:99999/",
    "two ports": "http://example.org:80:80/",
    "a name for a port": "http://example.org:http/",
    "localhost": "http://localhost/",
    "localhost with a dot": "http://localhost./",
    "localhost in capitals": "http://LOCALHOST/",
    "below localhost": "http://x.localhost/",
    "circled localhost": "http://ⓛocalhost/",
    "soft hyphen": "http://local\u00adhost/",
    "metadata by name": "http://metadata.google.internal/computeMetadata/v1/",
    "a single label": "http://intranet/",
    "two final dots": "http://example.org../",
    "an empty label": "http://example..org/",
    "a label of 64": f"http://{'a' * 64}.org/",
    "a name of 300": f"http://{'a.' * 150}org/",
    "a hyphen first": "http://-example.org/",
    "too long": "http://example.org/" + "x" * 2048,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_address_of_the_web_is_made_of(text):
    with pytest.raises(ProviderError) as told:
        web_url(text, PORTS)
    assert told.value.kind is ErrorKind.BAD_REQUEST
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("http://127.0.0.1/", "127.0.0.1"),
        ("http://127.0.0.1./", "127.0.0.1"),
        ("http://①②⑦.⓪.⓪.①/", "127.0.0.1"),
        ("http://１２７.0.0.1/", "127.0.0.1"),
        ("http://127。0。0。1/", "127.0.0.1"),
        ("http://[::1]/", "::1"),
        ("http://[0:0:0:0:0:0:0:1]/", "::1"),
        ("http://[::ffff:127.0.0.1]/", "::ffff:7f00:1"),
        ("http://[::FFFF:7F00:1]/", "::ffff:7f00:1"),
    ],
)
def test_spellings_of_an_address_are_all_read_as_that_address(text, host):
    assert web_url(text, PORTS).raw_host.replace("::ffff:127.0.0.1", "::ffff:7f00:1") == host


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("http://EXAMPLE.org", "http://example.org/"),
        ("HTTPS://example.org./a", "https://example.org/a"),
        ("https://example.org:443/a?b=c#d", "https://example.org/a?b=c"),
        ("http://example.org:443/", "http://example.org:443/"),
        (" http://example.org/a b \n", "http://example.org/a%20b"),
        ("http://huggingface。co/x", "http://huggingface.co/x"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
        ("http://ex\u0430mple.org/", "http://xn--exmple-4nf.org/"),
        ("https://de.wikipedia.org/wiki/Köln", "https://de.wikipedia.org/wiki/K%C3%B6ln"),
        ("http://a_b.example.org/", "http://a_b.example.org/"),
        ("http://example.org?q=1", "http://example.org/?q=1"),
    ],
)
def test_an_address_has_one_spelling(text, spelt):
    assert str(web_url(text, PORTS)) == spelt


def test_a_relative_address_is_read_from_its_base():
    base = web_url("https://example.org/a/b?c", PORTS)
    assert str(web_url("../d", PORTS, base)) == "https://example.org/d"
    assert str(web_url("//other.org/x", PORTS, base)) == "https://other.org/x"
    assert str(web_url("?q", PORTS, base)) == "https://example.org/a/b?q"
    with pytest.raises(ProviderError):
        web_url("//10.0.0.1@other.org/", PORTS, base)


awkward = st.lists(
    st.sampled_from(
        [*"htp:/@.#?%[]\\ -0127x", "http://", "example.org", "127.0.0.1", "localhost", "%2f", "。", "①", "é"]
    ),
    max_size=14,
).map("".join)


@given(st.one_of(awkward, awkward.map("http://".__add__), st.text(max_size=30)))
def test_whatever_is_given_either_has_one_stable_spelling_or_is_refused(text):
    try:
        url = web_url(text, PORTS)
    except ProviderError:
        return
    assert url.scheme in ("http", "https")
    assert url.port in PORTS
    assert url.raw_user is None
    assert web_url(str(url), PORTS) == url
    assert url.raw_host == URL(str(url)).raw_host  # what is judged is what the client reads
