"""The documented shape of every provider, and its adapter: requests it accepts, replies, what each error means.

One `Case` per adapter. The replies follow the providers' documentation; the figures and pages in them are made up.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from actors.search.providers.brave import BraveSearch
from actors.search.providers.jina import JinaReader
from actors.search.providers.retriever import RetrieverSearch
from actors.search.providers.searxng import SearxngSearch
from actors.search.providers.serpapi import SerpApiLens, SerpApiSearch
from actors.search.providers.serper import SerperLens, SerperSearch
from actors.search.providers.tavily import TavilySearch
from actors.search.seams import (
    ErrorKind,
    ImageQuery,
    ImageSearch,
    Page,
    PageReader,
    TextQuery,
    TextSearch,
)
from tests.unit.actors.search.providers.loopback import HTML, Reply, Seen, WrongRequest

KEY = "k+y/0123=secret&"
QUERY = "who founded Velmora"
PAGE = "https://pages.example/velmora"
PICTURE_URL = "https://store.example/ab/abcd.png?X-Amz-Signature=0f1e2d"

BAD_KEY, NO_CREDIT, RATE = ErrorKind.BAD_KEY, ErrorKind.NO_CREDIT, ErrorKind.RATE
BAD_REQUEST, TRANSIENT, SCHEMA = ErrorKind.BAD_REQUEST, ErrorKind.TRANSIENT, ErrorKind.SCHEMA


@dataclass(frozen=True)
class Failure:
    """A documented refusal, what it means and how long it asks to wait."""

    reply: Reply
    kind: ErrorKind
    retry_after: float | None = None


@dataclass(frozen=True)
class Case:
    """`found`: (title, url, text, score) of each hit in `good`; `empty`: a reply without results, and what it is."""

    name: str
    make: Callable[..., Any]
    accepts: Callable[[Seen], Any]  # raises WrongRequest, returns the good reply
    found: list[tuple[str, str, str, float]]
    empty: Any
    no_list: Any  # as `good`, but the list has gone or has another name
    rows: Callable[[list[Any]], Any]  # a reply around these rows
    row: Callable[..., dict[str, Any]]  # a row from url=, title=, text=, score=
    failures: list[Failure]
    emptiness: ErrorKind | None = None
    key_env: str = ""
    aside: str = ""


class AtOneAddress:
    """A Publisher whose pictures are all at one address."""

    async def publish(self, image: bytes) -> str:
        return PICTURE_URL


def picture(side: int = 16) -> bytes:
    encoded = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(encoded, format="PNG")
    return encoded.getvalue()


async def asked(adapter: Any, k: int = 3) -> list[tuple[str, str, str, float]]:
    """What the adapter finds, for any kind of adapter."""
    if isinstance(adapter, JinaReader):
        page: Page = await adapter.read(PAGE)
        return [(page.title, page.url, page.text, 0.0)]
    if isinstance(adapter, SerpApiLens | SerperLens):
        hits = await adapter.search(ImageQuery(picture(), k))
    else:
        hits = await adapter.search(TextQuery(QUERY, k))
    return [(hit.title, hit.url, hit.text, hit.score) for hit in hits]


def must(seen: Seen, method: str, path: str, **wanted: Any) -> None:
    """Raises WrongRequest when a request is not that. `wanted`: headers query, json, form."""
    if (seen.method, seen.path) != (method, path):
        raise WrongRequest(f"only {method} {path} is known")
    for name, value in wanted.get("headers", {}).items():
        if seen.headers.get(name) != value:
            raise WrongRequest(f"header {name} is {seen.headers.get(name)!r}, not {value!r}")
    for part in ("query", "json"):
        if part in wanted and (getattr(seen, part) or {}) != wanted[part]:
            raise WrongRequest(f"{part} is {getattr(seen, part)!r}, not {wanted[part]!r}")


GOOD = [
    ("Velmora", "https://pages.example/velmora", "Velmora was founded by Ilse Tarn.", 0.9),
    ("Ilse Tarn", "https://pages.example/tarn", "Born in Prell.", 0.5),
]
UNRANKED = [(title, url, text, 0.0) for title, url, text, _ in GOOD]


def _good(case_row: Callable[..., dict[str, Any]]) -> list[Any]:
    return [case_row(title=title, url=url, text=text, score=score) for title, url, text, score in GOOD]


# --- Serper -------------------------------------------------------------------------------------------------


def serper_row(*, url: Any = None, title: Any = None, text: Any = None, score: Any = None) -> dict[str, Any]:
    return {"title": title, "link": url, "snippet": text, "position": 1}


def serper_rows(rows: list[Any]) -> dict[str, Any]:
    parameters = {"q": QUERY, "type": "search", "engine": "google", "num": 10}
    return {"searchParameters": parameters, "organic": rows, "relatedSearches": [{"query": "tarn"}], "credits": 2}


def serper(seen: Seen) -> Any:
    must(seen, "POST", "/search", headers={"x-api-key": KEY}, json={"q": QUERY, "num": 10})
    return serper_rows(_good(serper_row))


def serper_error(status: int, message: str, **headers: str) -> Reply:
    return Reply({"message": message, "statusCode": status}, status, headers)


SERPER_FAILURES = [
    Failure(serper_error(403, "Unauthorized."), BAD_KEY),
    Failure(serper_error(401, "Unauthorized. Sign up for a free account."), BAD_KEY),
    Failure(serper_error(400, "Not enough credits"), NO_CREDIT),
    Failure(serper_error(429, "Not enough credits"), NO_CREDIT),
    Failure(serper_error(403, "This endpoint is not part of your plan."), NO_CREDIT),
    Failure(serper_error(400, "Query pattern not allowed for free accounts"), BAD_REQUEST),
    Failure(serper_error(429, "Too many requests"), RATE),
    Failure(serper_error(500, "Internal"), TRANSIENT),
    Failure(Reply({"searchParameters": {"q": QUERY}, "organic": {"0": "x"}}), SCHEMA),
]


def serper_lens(seen: Seen) -> Any:
    must(seen, "POST", "/lens", headers={"x-api-key": KEY}, json={"url": PICTURE_URL})
    return serper_rows(_good(serper_row))


# --- SerpApi ------------------------------------------------------------------------------------------------


def serpapi_rows(rows: list[Any]) -> dict[str, Any]:
    state = {"organic_results_state": "Results for exact spelling"}
    return {"search_metadata": {"id": "a", "status": "Success"}, "search_information": state, "organic_results": rows}


def serpapi(seen: Seen) -> Any:
    query = {"api_key": KEY, "engine": "google", "output": "json", "q": QUERY, "safe": "active"}
    must(seen, "GET", "/search.json", query=query)
    if list(seen.query) != sorted(seen.query):
        raise WrongRequest("parameters out of order are paid twice")
    return serpapi_rows(_good(serper_row))


NOTHING = "Google hasn't returned any results for this query."


def serpapi_error(status: int, message: str, **headers: str) -> Reply:
    return Reply({"error": message}, status, headers)


SERPAPI_FAILURES = [
    Failure(serpapi_error(401, "Invalid API key. Your API key should be here: https://serpapi.com"), BAD_KEY),
    Failure(serpapi_error(429, "Your account has run out of searches."), NO_CREDIT),
    Failure(serpapi_error(429, "You are exceeding your hourly throughput limit."), RATE),
    Failure(serpapi_error(400, "Unsupported `lp` value."), BAD_REQUEST),
    Failure(serpapi_error(410, "The archived search has expired."), SCHEMA),
    Failure(Reply({"search_metadata": {"status": "Error"}, "error": "We could not do it."}, 503), TRANSIENT),
    Failure(Reply({"search_metadata": {"status": "Error"}, "error": "We could not do it."}), TRANSIENT),
    Failure(Reply({"search_metadata": {"status": "Processing"}}), TRANSIENT),
    Failure(Reply({"search_metadata": {"status": "Success"}, "error": "Words that nobody knows."}), SCHEMA),
    Failure(
        Reply({**serpapi_rows([serper_row(url="https://a.example")]), "error": "Words that nobody knows."}), SCHEMA
    ),
]


def lens_row(*, url: Any = None, title: Any = None, text: Any = None, score: Any = None) -> dict[str, Any]:
    return {"position": 1, "title": title, "link": url, "source": text, "thumbnail": "https://t.example/1"}


def lens_rows(rows: list[Any]) -> dict[str, Any]:
    return {"search_metadata": {"status": "Success"}, "visual_matches": rows, "related_content": []}


def serpapi_lens(seen: Seen) -> Any:
    if seen.path == "/image":
        must(seen, "POST", "/image", query={})
        if seen.form.keys() != {"image", "api_key"} or seen.form["api_key"] != KEY:
            raise WrongRequest(f"fields are {sorted(seen.form)}")
        if len(seen.form["image"]) > 500_000:
            raise WrongRequest("the picture is larger than 500 KB")
        return {"message": "Image uploaded successfully", "image_id": "img-7"}
    query = {"api_key": KEY, "engine": "google_lens", "image_id": "img-7", "output": "json"}
    must(seen, "GET", "/search.json", query={**query, "safe": "active", "type": "all"})
    return lens_rows(_good(lens_row))


# --- Brave --------------------------------------------------------------------------------------------------


def brave_row(*, url: Any = None, title: Any = None, text: Any = None, score: Any = None) -> dict[str, Any]:
    if isinstance(text, str):
        text = text.replace("Velmora", "<strong>Velmora</strong>").replace("Prell", "&#80;rell")
    return {"type": "search_result", "title": title, "url": url, "description": text, "page_age": None}


def brave_rows(rows: list[Any]) -> dict[str, Any]:
    return {"type": "search", "query": {"original": QUERY}, "web": {"type": "search", "results": rows}}


def brave(seen: Seen) -> Any:
    query = {"q": QUERY, "count": "3", "result_filter": "web", "safesearch": "strict", "text_decorations": "false"}
    headers = {"x-subscription-token": KEY, "accept": "application/json"}
    must(seen, "GET", "/res/v1/web/search", headers=headers, query=query)
    return brave_rows(_good(brave_row))


def brave_error(status: int, code: str, one: bool = False, loc: list[str] | None = None, **headers: str) -> Reply:
    """In both forms: the documented list, and the single object that is observed."""
    meta = {"component": "x", **({"errors": [{"loc": loc, "msg": "wrong"}]} if loc else {})}
    error = {"id": "1", "code": code, "detail": "No.", "status": status, "meta": meta}
    body = {"error": error} if one else {"type": "ErrorResponse", "errors": [error], "time": 1}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


SECOND_USED_UP = {"X_RateLimit_Remaining": "0, 900", "X_RateLimit_Reset": "1, 1419704"}
MONTH_USED_UP = {"X-RateLimit-Remaining": "1, 0", "X-RateLimit-Reset": "1, 1419704"}
BRAVE_FAILURES = [
    Failure(brave_error(422, "SUBSCRIPTION_TOKEN_INVALID"), BAD_KEY),
    Failure(brave_error(422, "SUBSCRIPTION_TOKEN_INVALID", one=True), BAD_KEY),
    Failure(brave_error(404, "SUBSCRIPTION_NOT_FOUND"), BAD_KEY),
    Failure(brave_error(422, "VALIDATION", loc=["header", "x-subscription-token"]), BAD_KEY),
    Failure(brave_error(422, "VALIDATION", one=True, loc=["query", "q"]), BAD_REQUEST),
    Failure(brave_error(422, "VALIDATION"), BAD_REQUEST),
    Failure(brave_error(422, "VALIDATION", loc=["query", "country"]), SCHEMA),
    Failure(brave_error(429, "QUOTA_LIMITED", one=True, **SECOND_USED_UP), NO_CREDIT),
    Failure(brave_error(429, "RATE_LIMITED", **SECOND_USED_UP), RATE, 1.0),
    Failure(brave_error(429, "RATE_LIMITED", X_RateLimit_Remaining="1, 5", X_RateLimit_Reset="1, 9"), RATE),
    Failure(brave_error(429, "RATE_LIMITED", X_RateLimit_Remaining="one", X_RateLimit_Reset=""), RATE),
    Failure(Reply(HTML, 429, MONTH_USED_UP), NO_CREDIT),
    Failure(brave_error(500, "INTERNAL"), TRANSIENT),
    Failure(brave_error(200, "WORDS_THAT_NOBODY_KNOWS"), SCHEMA),
    Failure(Reply({"type": "search", "web": {"results": {"0": "x"}}}), SCHEMA),
    Failure(Reply({"type": "search", "web": {"rows": []}}), SCHEMA),
]

# --- Tavily -------------------------------------------------------------------------------------------------


def tavily_row(*, url: Any = None, title: Any = None, text: Any = None, score: Any = None) -> dict[str, Any]:
    return {"title": title, "url": url, "content": text, "score": score, "raw_content": None}


def tavily_rows(rows: list[Any]) -> dict[str, Any]:
    return {"query": QUERY, "answer": None, "images": [], "results": rows, "response_time": 1, "usage": {"credits": 2}}


def tavily(seen: Seen) -> Any:
    body = {"query": QUERY, "max_results": 3, "search_depth": "basic", "topic": "general", "include_usage": True}
    must(seen, "POST", "/search", headers={"authorization": f"Bearer {KEY}"}, json=body)
    return tavily_rows(_good(tavily_row))


def tavily_error(status: int, message: str, **headers: str) -> Reply:
    return Reply({"detail": {"error": message}}, status, headers)


TAVILY_FAILURES = [
    Failure(tavily_error(401, "Unauthorized: missing or invalid API key."), BAD_KEY),
    Failure(tavily_error(432, "This request exceeds your plan's set usage limit."), NO_CREDIT),
    Failure(tavily_error(433, "This request exceeds the pay-as-you-go limit."), NO_CREDIT),
    Failure(Reply(HTML, 432), NO_CREDIT),
    Failure(tavily_error(429, "Your request has been blocked due to excessive requests."), RATE),
    Failure(tavily_error(429, "This request exceeds your plan's set usage limit."), NO_CREDIT),
    Failure(tavily_error(400, "Query is too long."), BAD_REQUEST),
    Failure(tavily_error(502, "Bad gateway"), TRANSIENT),
    Failure(tavily_error(200, "Words that nobody knows."), SCHEMA),
    Failure(Reply({"results": None}), SCHEMA),
]

# --- SearXNG ------------------------------------------------------------------------------------------------


def searxng_rows(rows: list[Any]) -> dict[str, Any]:
    silent = [["brave", "too many requests"]]
    rest = {"answers": [], "corrections": [], "infoboxes": [], "suggestions": [], "unresponsive_engines": silent}
    return {"query": QUERY, "number_of_results": 0, "results": rows, **rest}


def searxng(seen: Seen) -> Any:
    query = {"q": QUERY, "format": "json", "safesearch": "2", "categories": "general"}
    must(seen, "GET", "/search", query=query)
    return searxng_rows(_good(tavily_row))


SEARXNG_FAILURES = [
    Failure(Reply(searxng_rows([])), TRANSIENT),  # nobody answered, which is not the same as nothing found
    Failure(Reply(HTML, 403), BAD_KEY),
    Failure(Reply(HTML, 429), RATE),
    Failure(Reply({"error": "No query"}, 400), BAD_REQUEST),
    Failure(Reply(HTML), SCHEMA),  # a reverse proxy's login page
]

# --- Jina Reader --------------------------------------------------------------------------------------------


def jina_data(**data: Any) -> dict[str, Any]:
    page = {"title": GOOD[0][0], "description": "", "url": GOOD[0][1], "content": GOOD[0][2], **data}
    return {"code": 200, "status": 20000, "data": page, "meta": {"usage": {"tokens": 4}}}


def jina(seen: Seen) -> Any:
    headers = {"authorization": f"Bearer {KEY}", "accept": "application/json", "x-timeout": "10"}
    must(seen, "POST", "/", headers=headers, json={"url": PAGE})
    return jina_data(usage={"tokens": 7})


def jina_error(status: int, told: int, http: int | None = None, **headers: str) -> Reply:
    body = {"code": status, "status": told, "message": "No.", "readableMessage": "Error: No."}
    return Reply(body, http or status, headers)


JINA_FAILURES = [
    Failure(jina_error(401, 40104), BAD_KEY),
    Failure(jina_error(402, 40203), NO_CREDIT),
    Failure(jina_error(402, 40203, http=200), NO_CREDIT),
    Failure(jina_error(402, 40202), NO_CREDIT),
    Failure(jina_error(409, 40903), TRANSIENT),
    Failure(jina_error(409, 40904), BAD_REQUEST),
    Failure(jina_error(413, 41302), BAD_REQUEST),
    Failure(jina_error(422, 42201), BAD_REQUEST),
    Failure(jina_error(429, 42903), RATE),
    Failure(jina_error(451, 45102), BAD_REQUEST),
    Failure(jina_error(503, 50305), TRANSIENT),
    Failure(Reply(HTML, 451), BAD_REQUEST),
    Failure(Reply(jina_data(httpStatus=404)), BAD_REQUEST),
    Failure(Reply(jina_data(httpStatus=429)), TRANSIENT),
    Failure(Reply(jina_data(httpStatus=503)), TRANSIENT),
    Failure(Reply(jina_data(warning="Target URL returned error 403: Forbidden")), BAD_REQUEST),
    Failure(Reply(jina_data(warning="This page maybe requiring CAPTCHA, please log in")), BAD_REQUEST),
    Failure(Reply(jina_data(content=None)), BAD_REQUEST),
    Failure(Reply({"code": 200, "status": 20000, "data": [1]}), SCHEMA),
]

# --- Search-R1's retriever ----------------------------------------------------------------------------------


def passage(*, url: Any = None, title: Any = None, text: Any = None, score: Any = None) -> dict[str, Any]:
    contents = f'"{title}"\n{text or ""}' if isinstance(title, str) else text
    return {"document": {"id": "7", "contents": contents, "url": url}, "score": score}


def retriever(seen: Seen) -> Any:
    must(seen, "POST", "/retrieve", json={"queries": [QUERY], "topk": 3, "return_scores": True})
    return {"result": [_good(passage)]}


RETRIEVER_FAILURES = [
    Failure(Reply({"detail": [{"loc": ["body", "queries"], "msg": "field required", "type": "missing"}]}, 422), SCHEMA),
    Failure(Reply({"detail": "Internal Server Error"}, 500), TRANSIENT),
    Failure(Reply({"result": [[], []]}), SCHEMA),
    Failure(Reply({"result": []}), SCHEMA),
    Failure(Reply({"result": [[{"contents": "bare, as without scores"}]]}), SCHEMA),
]

# --- all of them --------------------------------------------------------------------------------------------


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


_empty_searxng = {**searxng_rows([]), "unresponsive_engines": []}
CASES = [
    Case(
        "serper",
        lambda url, **kwargs: SerperSearch(base_url=url, **kwargs),
        serper,
        UNRANKED,
        empty=_without(serper_rows([]), "organic"),
        no_list={"credits": 1},
        rows=serper_rows,
        row=serper_row,
        failures=SERPER_FAILURES,
        key_env="SERPER_API_KEY",
    ),
    Case(
        "serper lens",
        lambda url, **kwargs: SerperLens(base_url=url, published=AtOneAddress(), **kwargs),
        serper_lens,
        UNRANKED,
        empty=serper_rows([]),
        no_list={"matches": []},
        rows=lambda rows: {"searchParameters": {"type": "lens"}, "visual_matches": rows},
        row=serper_row,
        failures=SERPER_FAILURES,
        key_env="SERPER_API_KEY",
    ),
    Case(
        "serpapi",
        lambda url, **kwargs: SerpApiSearch(base_url=url, **kwargs),
        serpapi,
        UNRANKED,
        empty={"search_metadata": {"status": "Success"}, "error": NOTHING},
        no_list=_without(serpapi_rows([]), "organic_results"),
        rows=serpapi_rows,
        row=serper_row,
        failures=SERPAPI_FAILURES,
        key_env="SERPAPI_API_KEY",
    ),
    Case(
        "serpapi lens",
        lambda url, **kwargs: SerpApiLens(base_url=url, **kwargs),
        serpapi_lens,
        UNRANKED,
        empty={"search_metadata": {"status": "Success"}, "error": NOTHING},
        no_list=_without(lens_rows([]), "visual_matches"),
        rows=lens_rows,
        row=lens_row,
        failures=SERPAPI_FAILURES,
        key_env="SERPAPI_API_KEY",
        aside="/image",
    ),
    Case(
        "brave",
        lambda url, **kwargs: BraveSearch(base_url=url, **kwargs),
        brave,
        UNRANKED,
        empty=_without(brave_rows([]), "web"),
        no_list={"results": []},
        rows=brave_rows,
        row=brave_row,
        failures=BRAVE_FAILURES,
        key_env="BRAVE_API_KEY",
    ),
    Case(
        "tavily",
        lambda url, **kwargs: TavilySearch(base_url=url, **kwargs),
        tavily,
        GOOD,
        empty=tavily_rows([]),
        no_list=_without(tavily_rows([]), "results"),
        rows=tavily_rows,
        row=tavily_row,
        failures=TAVILY_FAILURES,
        key_env="TAVILY_API_KEY",
    ),
    Case(
        "searxng",
        lambda url, **kwargs: SearxngSearch(base_url=url, **kwargs),
        searxng,
        GOOD,
        empty=_empty_searxng,
        no_list=_without(_empty_searxng, "results"),
        rows=searxng_rows,
        row=tavily_row,
        failures=SEARXNG_FAILURES,
    ),
    Case(
        "jina",
        lambda url, **kwargs: JinaReader(base_url=url, **kwargs),
        jina,
        UNRANKED[:1],
        empty=jina_data(content=" \n"),
        no_list={"code": 200, "status": 20000, "data": {"title": "x", "url": PAGE}},
        rows=lambda rows: jina_data(title=None, url=None, warning=None, httpStatus=None),
        row=lambda **_: {},
        failures=JINA_FAILURES,
        emptiness=BAD_REQUEST,
        key_env="JINA_API_KEY",
    ),
    Case(
        "retriever",
        lambda url, **kwargs: RetrieverSearch(base_url=url, **kwargs),
        retriever,
        GOOD,
        empty={"result": [[]]},
        no_list={"results": [[]]},
        rows=lambda rows: {"result": [rows]},
        row=passage,
        failures=RETRIEVER_FAILURES,
    ),
]

# What pyright holds the adapters to.
_text: list[TextSearch] = [
    SerperSearch(),
    SerpApiSearch(),
    BraveSearch(),
    TavilySearch(),
    SearxngSearch(base_url="http://searxng:8080"),
    RetrieverSearch(base_url="http://retriever:8000"),
]
_image: list[ImageSearch] = [SerpApiLens(), SerperLens(store="s3://bucket/crops")]
_reader: PageReader = JinaReader()


def echoes(secret: str) -> list[Any]:
    """Bodies of errors that quote `secret`, in each place where one of the providers has its words; and a page."""
    said = f"refused: {secret}"
    error = {"code": "X", "detail": said}
    return [
        {"message": said, "readableMessage": said, "error": said, "detail": said},
        {"error": error, "detail": {"error": said}},
        {"errors": [error]},
        f"<html>{said}</html>".encode(),
    ]
