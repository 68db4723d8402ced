import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.fetch.robots import DISALLOW_ALL, MAX_BYTES, normalised, parse

BOT = "mmsearch-ray"


def allows(text, path, token=BOT):
    return parse(text.encode(), token).allows(path)


def rules(*lines):
    return "User-agent: *\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("lines", "path", "open_"),
    [
        (["Disallow: /"], "/x", False),
        (["Disallow:"], "/x", True),
        (["Disallow: /a"], "/ab", False),
        (["Disallow: /a/"], "/a", True),
        (["Disallow: /a", "Allow: /a/b"], "/a/b/c", True),
        (["Allow: /a/b", "Disallow: /a"], "/a/c", False),
        (["Disallow: /a", "Allow: /a"], "/a", True),  # of equals, the allowing one
        (["Allow: /a", "Disallow: /a"], "/a", True),
        (["Allow: /", "Disallow: /a"], "/a", False),  # the longest, not the first
        (["Disallow: /*.pdf"], "/x/y.pdf", False),
        (["Disallow: /*.pdf$"], "/x/y.pdf?z", True),
        (["Disallow: /*.pdf$"], "/x/y.pdf", False),
        (["Disallow: /*.pdf$"], "/a.pdf/b.pdf", False),
        (["Disallow: /a*b*c"], "/a-c-b", True),
        (["Disallow: /a*b*c"], "/a-b-c-d", False),
        (["Disallow: /*a*a$"], "/a", True),  # one letter is not read twice
        (["Disallow: *"], "/x", False),
        (["Disallow: /$"], "/", False),
        (["Disallow: /$"], "/x", True),
        (["Disallow: /a$b"], "/a$b", False),
        (["Disallow: /a%24b"], "/a$b", False),
        (["Disallow: /a%2Ab"], "/a*b", False),
        (["Disallow: /a%2ab"], "/axb", True),
        (["Disallow: /%7Ex"], "/~x", False),
        (["Disallow: /a%2Fb"], "/a/b", True),  # an escaped slash is another octet sequence
        (["Disallow: /a%3cd"], "/a%3Cd", False),
        (["Disallow: /ツ"], "/%E3%83%84", False),
        (["Disallow: /%e3%83%84"], "/ツ", False),
        (["Disallow: /%62"], "/b", False),
        (["Disallow: /A"], "/a", True),
        (["Disallow: /?q="], "/?q=1", False),
        (["disallow : /a # not here", "# Disallow: /b"], "/a", False),
        (["disallow : /a # not here", "# Disallow: /b"], "/b", True),
        (["Disallow: a"], "/a", True),
        (["Disallow: /"], "/robots.txt", True),
        (["Disallow: /", "Allow: /x*"], "/xyz", True),
        (["Disallow: /*x", "Allow: /xx"], "/xx", True),
        (["nonsense", "Disallow /a", ": /b", "Disallow: /c"], "/c", False),
        (["nonsense", "Disallow /a", ": /b", "Disallow: /c"], "/a", True),
    ],
)
def test_a_path_is_read_as_the_rfc_reads_it(lines, path, open_):
    assert allows(rules(*lines), path) is open_


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("User-agent: mmsearch-ray\nDisallow: /", False),
        ("User-agent: MMSearch-Ray/2.0 (x)\nDisallow: /", False),
        ("User-agent: mmsearch\nDisallow: /", True),
        ("User-agent: mmsearch-raytwo\nDisallow: /", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: mmsearch-ray\nAllow: /y", True),  # nothing is inherited from *
        ("User-agent: *\nDisallow: /\n\nUser-agent: mmsearch-ray\n", True),
        ("User-agent: a\nUser-agent: mmsearch-ray\nDisallow: /", False),
        ("User-agent: a\n\nUser-agent: mmsearch-ray\n\nDisallow: /", False),
        ("User-agent: mmsearch-ray\nCrawl-delay: 9\nUser-agent: b\nDisallow: /", False),
        ("User-agent: mmsearch-ray\nDisallow: /y\nUser-agent: b\nDisallow: /", True),
        ("User-agent: mmsearch-ray\nAllow: /y\n\nUser-agent: b\n\nUser-agent: mmsearch-ray\nDisallow: /x", False),
        ("User-agent: other\nDisallow: /", True),
        ("Disallow: /\nUser-agent: *", True),
        ("User-agent: *\nSitemap: http://x\nDisallow: /", False),
        ("\ufeffUser-agent: *\nDisallow: /", False),
        ("User-agent: *\r\nDisallow: /\r\n", False),
        ("User-agent: *\rDisallow: /", False),
        ("USER-AGENT:*\nDISALLOW:/", False),
        ("<html><body>User-agent: *</body></html>", True),
        ("", True),
    ],
)
def test_groups_are_read_as_the_rfc_reads_them(text, open_):
    assert allows(text, "/x") is open_


def test_a_closed_site_is_closed_but_for_its_robots_txt():
    assert not DISALLOW_ALL.allows("/")
    assert not DISALLOW_ALL.allows("/x?y")
    assert DISALLOW_ALL.allows("/robots.txt")


def reference(pattern: str, path: str) -> bool:
    """Matching by trying every way to place the wildcards."""
    if not pattern:
        return True
    if pattern == "$":
        return not path
    if pattern[0] == "*":
        return any(reference(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and path[0] == pattern[0] and reference(pattern[1:], path[1:])


@given(st.text("ab/*", max_size=8), st.booleans(), st.text("ab/", max_size=8))
def test_wildcards_match_what_trying_every_placement_matches(pattern, anchored, path):
    pattern, path = "/" + pattern + ("$" if anchored else ""), "/" + path
    assert allows(rules(f"Disallow: {pattern}"), path) is not reference(pattern, path)


@given(st.lists(st.tuples(st.booleans(), st.text("ab", max_size=4)), max_size=6), st.text("ab", max_size=5))
def test_the_longest_rule_decides_in_any_order(pairs, path):
    lines = [f"{'Allow' if allow else 'Disallow'}: /{text}" for allow, text in pairs]
    fits = [(len(text), allow) for allow, text in pairs if path.startswith(text)]
    expected = max(fits)[1] if fits else True
    assert allows(rules(*lines), "/" + path) is expected
    assert allows(rules(*reversed(lines)), "/" + path) is expected


@given(st.text(max_size=12).map("/".__add__))
def test_a_path_is_spelt_in_one_way(path):
    path = path.encode("utf-8", errors="ignore").decode()
    once = normalised(path)
    assert normalised(once) == once
    assert once.isascii()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(body):
    rules_ = parse(b"User-agent: *\n" + body, BOT)
    rules_.allows("/x")
    assert rules_.weight >= 0


def test_what_follows_the_first_500_kibibytes_is_not_read():
    padding = "#" * (MAX_BYTES - len(rules()) - 1) + "\n"
    assert allows("User-agent: *\n" + padding + "Disallow: /", "/x")
    assert not allows("User-agent: *\n" + "Disallow: /\n" + padding, "/x")


@pytest.mark.parametrize(
    "line",
    [
        "Disallow: /" + "*a" * 200_000,
        "Disallow: /" + "*" * 400_000 + "b",
        "\n".join(f"Disallow: /*a*a*a*a*a*b{n}" for n in range(15_000)),
    ],
    ids=["wildcards in turn", "wildcards in a row", "rules with wildcards"],
)
def test_rules_that_are_made_to_be_slow_are_not(line):
    started = time.process_time()
    parsed = parse(rules(line).encode(), BOT)
    parsed.allows("/" + "a" * 2000)
    assert time.process_time() - started < 3


def test_many_distinct_rules_are_weighed():
    lines = [f"Disallow: /{a}{b}" for a, b in product(range(30), range(30))]
    assert parse(rules(*lines).encode(), BOT).weight > 100_000
