"""Title and main text of a page of HTML, by trafilatura. Runs as a script in a process of its own.

Parsing what strangers wrote can take minutes on a megabyte that is made for it, and a thread cannot be stopped. So
this file is started as a child by `extraction.py`, answers one page after the other on its standard streams, and is
killed when it takes too long. It imports nothing of ours, so it starts from its path alone.

Frames: four bytes of length, big-endian, then that many bytes. In: HTML in UTF-8. Out: first an empty frame once it is
ready, then for each page a JSON object with `title` and `text`.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any, BinaryIO

MAX_MEMORY = 4 * 2**30  # bytes of address space of the child
_MAX_TITLE = 1000  # characters


def title_and_text(html: str) -> tuple[str, str]:
    """The page's title and its main text in reading order; each is "" where there is none."""
    import trafilatura
    from trafilatura.utils import load_html

    tree = load_html(html)
    if tree is None:
        return "", ""
    title = _title(tree)
    text = trafilatura.extract(tree, include_comments=False, include_tables=True)
    return title, text or ""


def _title(tree: Any) -> str:
    for path in ('.//meta[@property="og:title"]/@content', ".//title/text()", ".//h1//text()"):
        found = " ".join(" ".join(tree.xpath(path)[:20]).split())
        if found:
            return found[:_MAX_TITLE]
    return ""


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until `source` ends."""
    import trafilatura  # noqa: F401  # loaded before anybody waits for an answer

    _write(sink, b"")
    while True:
        head = source.read(4)
        if len(head) < 4:
            return
        html = source.read(struct.unpack(">I", head)[0]).decode("utf-8", errors="replace")
        try:
            title, text = title_and_text(html)
        except Exception:  # whatever a page does to the parser, the next page is not to blame
            title, text = "", ""
        _write(sink, json.dumps({"title": title, "text": text}).encode("ascii"))


def _write(sink: BinaryIO, payload: bytes) -> None:
    sink.write(struct.pack(">I", len(payload)) + payload)
    sink.flush()


def _main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # a system without this limit, or a lower one already
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    _main()
