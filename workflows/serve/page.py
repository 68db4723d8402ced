"""The page at `/`: exactly the files beside this module, read once, served with what keeps a page to itself.

Always true: a page of ours asks nobody but this service, runs no script and no style that is not one of these files,
and stands in no other page's frame; what is not in `FILES` is not served, whatever the path says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workflows.serve.about import Example

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for again by its ETag: a new version of the service shows at once
}
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
INDEX = "index.html"
SHARED = "colours.css"  # of the report's package


@dataclass(frozen=True)
class Held:
    """Something that is served as it is."""

    body: bytes
    media_type: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


def _read() -> Mapping[str, Held]:
    own = resources.files("workflows.serve") / "page"
    found = [file for file in own.iterdir() if file.name.rpartition(".")[2] in TYPES]
    found.append(resources.files("workflows.report") / SHARED)
    return {file.name: Held(file.read_bytes(), TYPES[file.name.rpartition(".")[2]]) for file in found}


FILES = _read()


def routes(examples: Sequence[Example] = ()) -> list[Route]:
    """`/`, `/page/{name}` and `/examples/{number}`: for the ingress to add, where the settings want a page."""
    pictures = {str(number): Held(one.data, one.media_type) for number, one in enumerate(examples)}

    async def index(request: Request) -> Response:
        return answer(request, FILES[INDEX])

    async def part(request: Request) -> Response:
        return answer(request, FILES.get(request.path_params["name"]))

    async def example(request: Request) -> Response:
        return answer(request, pictures.get(request.path_params["number"]))

    return [Route("/", index), Route("/page/{name}", part), Route("/examples/{number}", example)]


def answer(request: Request, held: Held | None) -> Response:
    """404 for None, and 304 for what the browser has."""
    if held is None:
        return Response("There is nothing here.\n", 404, HEADERS, "text/plain")
    headers = {**HEADERS, "ETag": held.tag}
    if held.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(held.body, headers=headers, media_type=held.media_type)
