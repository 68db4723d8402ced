"""What somebody who comes to the service is told before the first question: `GET /about`, and examples to click.

    {"model": "embedded", "version": 3, "keys": false,
     "limits": {"pictures": 8, "picture_mib": 20, "body_mib": 32, "characters": 40000, "messages": 64, "seconds": 120},
     "search": {"text": [{"name": "serper", "external": true}], "image": [...]},
     "uploads": ["lens (serpapi.com)"],
     "examples": [{"question": "name the red star.", "picture": "examples/0"}]}

Always true: a provider counts as external unless it is known to stay within this cluster; nothing that is told is a
secret (no key, no path, no address but a provider's host), and no example is of anybody's data where keys are asked
for, since examples are shown before a key is. `picture` is relative to the address of the document.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from actors.agent.seams import ImageMissing, ImageStore
from actors.agent.trajectory import Question
from actors.search.build import provider_class
from actors.search.providers.shrink import media_type
from actors.search.settings import ProviderSettings, SearchSettings
from actors.search.store.settings import Mode
from cluster.errors import UserError
from workflows.run_folder import RunFolder
from workflows.serve.settings import ServeSettings

EMBEDDED = "workflows.embedded."  # package of the world that is made up, its questions and pictures included
WITHIN = (
    EMBEDDED,
    "actors.search.local.",
    "actors.search.grounding.",
)  # packages whose providers work on what lies here, and ask nobody
OWN_SERVERS = ("actors.search.providers.retriever:",)  # as far off as their address: they ask nobody else
LIMITS = ("pictures", "picture_mib", "body_mib", "characters", "messages", "seconds")  # of a request
SHOWN = 6  # examples
LOOKED_AT = 256  # questions among which they are sought
MOST_BYTES = 2 << 20  # of an example's picture
KINDS = ("image_text", "looking", "two_hops", "text", "image", "head", "refinement")  # of the embedded world, as shown


@dataclass(frozen=True)
class Example:
    """A question to click, with its picture as it is."""

    question: str
    data: bytes
    media_type: str


def about(
    settings: ServeSettings,
    search: SearchSettings,
    model: str,
    version: int,
    images_per_prompt: int,
    examples: Sequence[Example] = (),
) -> dict[str, Any]:
    """The document. `version`: of the weights, -1 while there are none; `images_per_prompt`: of the engine. Raises
    `UserError` for a provider that is not there."""
    request = settings.request
    limits = {name: getattr(request, name) for name in LIMITS}
    return {
        "model": model,
        "version": version,
        "keys": bool(settings.keys),
        "limits": {**limits, "pictures": min(request.pictures, images_per_prompt)},
        "search": {
            kind: [{"name": name_of(one), "external": external(one, search)} for one in providers]
            for kind, providers in (("text", search.text), ("image", search.image))
        },
        "uploads": list(uploads(search)),
        "examples": [{"question": one.question, "picture": f"examples/{i}"} for i, one in enumerate(examples)],
    }


def uploads(search: SearchSettings) -> tuple[str, ...]:
    """Where pictures are sent, in words: providers with their hosts, and the store where they are published."""
    grounder = [search.grounder] if search.grounder else []
    places: list[str] = []
    for provider in (*search.image, *grounder):
        if external(provider, search):
            host = host_of(provider)
            places.append(f"{name_of(provider)} ({host})" if host else name_of(provider))
            if store := str(provider.kwargs.get("store", "")):
                places.append(f"the store {store.partition('://')[2].partition('/')[0] or store}")
    return tuple(dict.fromkeys(places))


def external(provider: ProviderSettings, search: SearchSettings) -> bool:
    """Whether something of a question leaves the cluster by this provider. In doubt it does."""
    if search.cassette.mode is Mode.REPLAY or provider.path.startswith(WITHIN):
        return False
    return not (provider.path.startswith(OWN_SERVERS) and _is_here(host_of(provider)))


def name_of(provider: ProviderSettings) -> str:
    """As in evidence."""
    return provider.name or provider.path.partition(":")[2]


def host_of(provider: ProviderSettings) -> str:
    """The host that is asked; "" where the class names none."""
    made = provider_class(provider)
    with suppress(ValueError):  # no address, or a class that does not say what it takes
        default = inspect.signature(made).parameters.get("base_url")
        given = provider.kwargs.get("base_url", default.default if default else "")
        return urlsplit(given if isinstance(given, str) else "").hostname or ""
    return ""


def examples(run: RunFolder, images: ImageStore, settings: ServeSettings) -> list[Example]:
    """Of the run's test questions, those with one picture, of as many kinds as there are; none without a dataset, and
    where keys are asked for none of a dataset that may be somebody's."""
    import pyarrow as pa

    if settings.keys and not _made_up(run):
        return []
    by_kind: dict[str, list[Example]] = {}
    with suppress(UserError, OSError, pa.ArrowException):  # a page without examples is a page
        for question in _test_questions(run, images):
            found = by_kind.setdefault(question.kind, [])
            if len(found) < SHOWN and (shown := _example(question, images)) is not None:
                found.append(shown)
    known = [*(kind for kind in KINDS if kind in by_kind), *sorted(kind for kind in by_kind if kind not in KINDS)]
    spread = [by_kind[kind][i] for i in range(SHOWN) for kind in known if i < len(by_kind[kind])]
    return spread[:SHOWN]


def _made_up(run: RunFolder) -> bool:
    """Whether the test questions are of the embedded world, as the report beside them tells."""
    from workflows.dataset.build import REPORT

    try:
        source = run.dataset.read_json(REPORT)["questions/test"]["identity"]["source"][0]
    except (UserError, OSError, ValueError, LookupError, TypeError):  # no report, or none of ours
        return False
    return isinstance(source, str) and source.startswith(EMBEDDED)


def _test_questions(run: RunFolder, images: ImageStore) -> Iterator[Question]:
    """The first ones: a dataset may have more than a start should wait for."""
    import pyarrow.parquet as pq

    from workflows.grpo.questions import NoQuestion, question_of

    folder, looked_at = run.questions("test"), 0
    for shard in sorted(name for name in folder.list() if name.endswith(".parquet")):
        with folder.open(shard) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(SHOWN):
                for row in batch.to_pylist():
                    with suppress(NoQuestion):
                        yield question_of(row, images)
                looked_at += len(batch)
                if looked_at >= LOOKED_AT:
                    return


def _example(question: Question, images: ImageStore) -> Example | None:
    """None for a question that a click cannot ask."""
    if len(question.images) != 1:
        return None
    try:
        data = images.get(question.images[0])
    except ImageMissing:
        return None
    kind = media_type(data)
    return Example(question.text, data, kind) if kind and len(data) <= MOST_BYTES else None


def _is_here(host: str) -> bool:
    """This machine, or a private address."""
    with suppress(ValueError):
        return ip_address(host).is_private
    return host == "localhost"
