"""Which sites may be read: an allow list, a deny list, and ready lists to deny. Pure.

A rule is `example.org`, which holds for that name and everything below it, or `example.org/path`, which holds for that
path and everything below it. Paths are compared after percent-decoding and without regard to case, since the sites
that are worth denying do not regard it either. A denied address stays denied however it is spelt.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from urllib.parse import unquote

from yarl import URL

from actors.search.fetch.urls import refused
from cluster.errors import UserError

# Repositories that hold questions and answers of the field's benchmarks, or the code that fetches them.
_REPOSITORIES = (
    "EvolvingLMMs-Lab/multimodal-search-r1",
    "open-vision-language/infoseek",
    "edchengg/infoseek_eval",
    "CaraJ7/MMSearch",
    "Alibaba-NLP/OmniSearch",
    "Alibaba-NLP/WebAgent",
    "Alibaba-NLP/DeepResearch",
    "SimpleVQA/SimpleVQA",
    "MMBrowseComp/MM-BrowseComp",
    "openai/simple-evals",
    "hotpotqa/hotpot",
    "Alab-NII/2wikimultihop",
    "StonyBrookNLP/musique",
    "mandarjoshi90/triviaqa",
    "google-research-datasets/natural-questions",
    "AlexTMallen/adaptive-retrieval",
    "ofirpress/self-ask",
    "allenai/aokvqa",
    "PaulLerner/ViQuAE",
    "WebQnA/WebQA",
    "MMMU-Benchmark/MMMU",
    "centerforaisafety/hle",
    "PeterGriffinJin/Search-R1",
    "RUC-NLPIR/FlashRAG",
    "open-compass/VLMEvalKit",
    "EvolvingLMMs-Lab/lmms-eval",
)
_PROJECT_PAGES = (
    "mmsearch.github.io",
    "open-vision-language.github.io/infoseek",
    "livevqa.github.io",
    "simplevqa.github.io",
    "okvqa.allenai.org",
    "webqna.github.io",
    "visualqa.org",
    "mmmu-benchmark.github.io",
    "hotpotqa.github.io",
    "nlp.cs.washington.edu/triviaqa",
    "ai.google.com/research/naturalquestions",
    "github.com/google-research/google-research/tree/master/encyclopedic_vqa",
    "raw.githubusercontent.com/google-research/google-research/master/encyclopedic_vqa",
    "storage.googleapis.com/encyclopedic-vqa",
    "lastexam.ai",
    "agi.safe.ai",
)
_DATA_HOSTS = (
    "huggingface.co/datasets",
    "huggingface.co/spaces",
    "huggingface.co/api/datasets",
    "huggingface.co/api/spaces",
    "datasets-server.huggingface.co",
    "cdn-lfs.huggingface.co",
    "cdn-lfs-us-1.huggingface.co",
    "hf.space",
    "hf.co",
    "hf-mirror.com",
    "modelscope.cn/datasets",
    "modelscope.cn/api/v1/datasets",
    "kaggle.com/datasets",
    "kaggle.com/competitions",
    "opendatalab.com",
    "paperswithcode.com",
    "academictorrents.com",
)


def _of_repository(name: str) -> tuple[str, ...]:
    return (
        f"github.com/{name}",
        f"raw.githubusercontent.com/{name}",
        f"media.githubusercontent.com/media/{name}",
        f"codeload.github.com/{name}",
        f"api.github.com/repos/{name}",
        f"cdn.jsdelivr.net/gh/{name}",
    )


PRESETS: dict[str, tuple[str, ...]] = {
    # where a question of a benchmark stands beside its answer
    "benchmarks": (*_DATA_HOSTS, *_PROJECT_PAGES, *(rule for name in _REPOSITORIES for rule in _of_repository(name))),
    # sites that show any other site, so that a denied one could be read through them
    "relays": (
        *("web.archive.org", "archive.org/wayback", "archive.ph", "archive.is", "archive.today", "archive.md"),
        *("archive.li", "archive.vn", "archive.fo", "translate.goog", "translate.google.com"),
        *("webcache.googleusercontent.com", "r.jina.ai", "s.jina.ai", "12ft.io", "outline.com", "freezepage.com"),
        *("cc.bingj.com", "raw.githack.com", "rawcdn.githack.com", "corsproxy.io", "allorigins.win"),
    ),
}


class DomainRules:
    """`allow`, `deny` and `presets` as in FetchSettings. Raises UserError for a preset or a rule of no form."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = (), presets: Iterable[str] = ()) -> None:
        denied = list(deny)
        for preset in presets:
            if preset not in PRESETS:
                raise UserError(f"deny preset {preset!r} is not one of {', '.join(sorted(PRESETS))}")
            denied += PRESETS[preset]
        self._allow, self._deny = _table(allow), _table(denied)

    def check(self, url: URL) -> None:
        """Raises ProviderError(BAD_REQUEST) for an address that the lists shut out."""
        host = url.raw_host or ""
        if _holds(self._deny, url):
            raise refused(f"{host[:60]!r} is on the deny list")
        if self._allow and not _holds(self._allow, url):
            raise refused(f"{host[:60]!r} is not on the allow list")


def _table(rules: Iterable[str]) -> dict[str, list[str]]:
    """Path prefixes by host; the empty prefix stands for the whole host."""
    table: dict[str, list[str]] = {}
    for rule in rules:
        host, _, path = rule.strip().removeprefix("*.").partition("/")
        host = host.casefold().rstrip(".")
        if not host or "." not in host or ":" in host or not host.isascii():
            raise UserError(f"{rule!r} is no domain rule; write example.org or example.org/path, names in ASCII")
        table.setdefault(host, []).append(_plain_path(path).rstrip("/") if path.strip("/") else "")
    return table


def _holds(table: dict[str, list[str]], url: URL) -> bool:
    labels = (url.raw_host or "").casefold().split(".")
    path = _plain_path(url.raw_path)
    for start in range(len(labels)):
        for prefix in table.get(".".join(labels[start:]), ()):
            if not prefix or path == prefix or path.startswith(f"{prefix}/"):
                return True
    return False


def _plain_path(path: str) -> str:
    """Decoded until nothing is left to decode, without doubled slashes and dots, in lower case."""
    for _ in range(3):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    return posixpath.normpath("/" + path.lstrip("/")).casefold()
