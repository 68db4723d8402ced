"""`mmsearch index`: build a search engine of one's own, and say what is in one.

What is built, and how, is decided in `actors/search/local/`; here it is told from the words on a command line, and
shown while it lasts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.search.local import index_folder
from actors.search.local.index_folder import Manifest
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.progress import LINE_EVERY_S

# of each kind of index, the options of the command line that it takes, and what its builder calls them
_TEXT = {"text_column": "text_column", "title_column": "title_column", "url_column": "url_column"}
_TEXT |= {"stopwords": "stopwords"}
_COLUMNS = {"image_column": "image", "title_column": "title", "url_column": "url", "text_column": "text"}
_COLUMNS |= {"vector_column": "vector"}
_IMAGE = {"model": "model", "vectors": "vectors", "pictures_root": "pictures_root", "device": "device"}
_IMAGE |= {"batch": "batch", "index": "index", "exact_below": "exact_below", "thumbnail_side": "thumbnail_side"}
_FVQA = {"questions": "questions", "pictures_root": "pictures_root", "thumbnail_side": "thumbnail_side"}
OPTIONS = {"text": {*_TEXT}, "image": {*_COLUMNS, *_IMAGE}, "fvqa": {*_FVQA}}
ENGINES = {
    index_folder.TEXT: ("text", "actors.search.local.text:LocalTextSearch"),
    index_folder.IMAGE: ("image", "actors.search.local.image:LocalImageSearch"),
    index_folder.CACHE: ("image", "actors.search.local.fvqa_cache:CachedImageSearch"),
}


def build(
    kind: str,
    sources: Sequence[str],
    out: str,
    options: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Build an index of `kind` (text | image | fvqa) from `sources` at `out`, and print how to use it.

    `options`: those of the command line that were given, by their Python names; None counts as not given. Raises
    UserError before anything is read where an option is not for this kind.
    """
    if kind not in OPTIONS:
        raise UserError(f"There is no index of kind {kind!r}: text, image and fvqa can be built.")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for name in sorted(given.keys() - OPTIONS[kind]):
        takers = [other for other, names in OPTIONS.items() if name in names]
        raise UserError(
            f"--{name.replace('_', '-')} is not for an index of kind {kind}, but for {' and '.join(takers)}."
        )
    console = console or Console(stderr=True)
    with _Watch(console) as watch:
        manifest = _build(kind, sources, out, given, {"force": force, "progress": watch.rows, "say": watch.say})
    for line in described(Folder(out), manifest):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return manifest


def info(address: str, as_json: bool = False) -> None:
    """Print what is in the index at `address`, local or s3://. Raises UserError where there is none, or a torn one."""
    folder = Folder(address)
    manifest = index_folder.read_manifest(folder)
    sizes = folder.sizes()
    for name, size in manifest.files.items():
        if sizes.get(name) != size:
            raise UserError(f"The index at {folder} is damaged: {name} is not of {size} bytes. Build or copy it anew.")
    if as_json:
        print(json.dumps({"folder": folder.address, **asdict(manifest)}, indent=2, sort_keys=True))
        return
    print("\n".join(described(folder, manifest)))


def described(folder: Folder, manifest: Manifest) -> list[str]:
    """Lines about an index, the last of them the setting that puts it to use."""
    kind = index_folder.KINDS.get(manifest.kind, manifest.kind)
    made = datetime.fromtimestamp(manifest.made_at, UTC).isoformat(timespec="minutes").removesuffix("+00:00")
    lines = [f"{folder}: {kind}, {manifest.count:,} rows, {sum(manifest.files.values()):,} bytes, of {made} UTC"]
    for name, value in sorted(manifest.details.items()):
        if isinstance(value, dict):
            value = ", ".join(f"{key}={one}" for key, one in value.items() if one is not None)
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        lines.append(f"  {name}: {value}")
    lines.append(f"  digest: {manifest.digest}")
    if manifest.kind in ENGINES:
        tool, path = ENGINES[manifest.kind]
        lines.append(f"  to use it: search.{tool}=[{{path: '{path}', kwargs: {{folder: '{folder.address}'}}}}]")
    return lines


def _build(
    kind: str, sources: Sequence[str], out: str, given: Mapping[str, Any], common: Mapping[str, Any]
) -> Manifest:
    if kind == "text":
        from actors.search.local.text import build_text_index

        return build_text_index(sources, out, **_renamed(given, _TEXT), **common)
    if kind == "image":
        from actors.search.local.image_index import build_image_index
        from actors.search.local.picture_rows import Columns

        columns = Columns(**_renamed(given, _COLUMNS))
        return build_image_index(sources, out, columns=columns, **_renamed(given, _IMAGE), **common)
    from actors.search.local.fvqa_cache import import_fvqa_cache

    if not given.get("questions"):
        raise UserError("A cache knows questions by data_id alone: name their Parquet files with --questions.")
    return import_fvqa_cache(sources, folder=out, **_renamed(given, _FVQA), **common)


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in given.items() if name in names}


class _Watch:
    """Rows as a bar; a line now and then where there is no terminal to draw one on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("index"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("index", total=None)
        self._printed_at = time.monotonic()

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def rows(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed_at >= LINE_EVERY_S:
            self._printed_at = now
            self.say(f"index: {done:,} of {total:,} rows")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
