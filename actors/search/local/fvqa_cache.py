"""MMSearch-R1's image-search caches as an image engine: what a search for a question's picture gave its authors.

The released caches are pickles `{data_id: {"tool_returned_web_title_list": [...], "tool_returned_images_urls":
[...]}}`, whose second list mixes addresses of thumbnails with pictures of Pillow; others re-released them as JSON with
`tool_returned_web_title` and `cached_images_path`. Both are read here, never by `pickle`. A cache knows questions by
data_id, an engine is asked with a picture: the questions' Parquet files join the two, and the index knows pictures by
their pixels. There are no addresses of pages in a cache, so a hit has the thumbnail's address or a local one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from actors.model.images import MAX_PIXELS
from actors.search.local import index_folder, pixels, restricted_pickle, sources
from actors.search.local.engine import LocalEngine
from actors.search.local.index_folder import Manifest
from actors.search.local.picture_rows import Columns, ParquetPictures
from actors.search.local.restricted_pickle import BOUNDS, Bounds, Foreign, PickleRefused
from actors.search.local.row_file import PICTURE, RowFile, RowWriter
from actors.search.local.text import Progress, Say
from actors.search.pictures import UnreadablePicture
from actors.search.seams import ErrorKind, ImageHit, ImageQuery, ProviderError
from cluster.errors import UserError
from cluster.storage import Folder

HITS, KEYS = "hits.arrow", "keys.parquet"
BATCH_ROWS = 256
TITLES = ("tool_returned_web_title_list", "tool_returned_web_title")
PICTURES = ("tool_returned_images_urls", "cached_images_path")
MAX_DISTANCE = 16  # bits of 64; beyond, unlike pictures meet by chance
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I", "F")
_KEY_SCHEMA = pa.schema(
    [("pixels", pa.binary(32)), ("dhash", pa.uint64()), ("first", pa.int64()), ("hits", pa.int32())]
)


@dataclass(frozen=True)
class CachedHit:
    """One result as the cache has it. `url`: of the thumbnail, "" where there is none."""

    title: str
    url: str = ""
    picture: Image.Image | None = None


def import_fvqa_cache(
    caches: Sequence[str],
    questions: Sequence[str],
    folder: str,
    *,
    thumbnail_side: int = 224,
    pictures_root: str | None = None,
    bounds: Bounds = BOUNDS,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
) -> Manifest:
    """Write an index to `folder` that answers for the pictures of `questions` as `caches` have it.

    `caches`: local pickles, or JSON files, whose pictures lie below `pictures_root` (default: the file's folder).
    `questions`: FVQA's Parquet files, with columns data_id and images; they are read a batch at a time, a cache is held
    whole. Where questions share a picture, the first with hits counts. Raises UserError, for a cache with anything but
    plain values and pictures in it, too.
    """
    if not caches:
        raise UserError("Name at least one cache: a .pkl or .json file.")
    files = sources.parquet_files(questions)
    data_id = sources.need_column(files, "data_id", (), "the questions' ids")
    sources.need_strings(files, data_id)
    entries = _entries(caches, pictures_root, bounds)
    say(f"{len(entries):,} entries in {', '.join(caches)}")
    with index_folder.staged(folder, force) as staging:
        with RowWriter(staging.path / HITS, PICTURE, BATCH_ROWS) as writer:
            keys = _Keys()
            for done, total, ident, picture in _pictures_of(files, data_id):
                keys.seen.add(ident)
                if picture is not None and (hits := entries.get(ident)):
                    keys.add(picture, writer.count, [_row(hit, thumbnail_side) for hit in hits], writer)
                progress(done, total)
        if not len(keys):
            raise UserError(f"No picture in {', '.join(questions)} belongs to an entry of {', '.join(caches)}.")
        pq.write_table(keys.table(), staging.path / KEYS)
        details = {
            "hits": writer.count,
            "thumbnail_side": thumbnail_side,
            "entries_without_question": len(entries.keys() - keys.seen),
            "questions_without_entry": len(keys.seen - entries.keys()),
            "pictures_again": keys.again,
            "sources": [*caches, *questions],
        }
        return staging.finish(index_folder.CACHE, len(keys), writer.digest, details)


# --- reading a cache ----------------------------------------------------------------------------------------


def read_cache(path: str, pictures_root: str | None = None, bounds: Bounds = BOUNDS) -> dict[str, list[CachedHit]]:
    """The entries of one cache file, by data_id. Raises UserError, with the entry's id where one is not as known."""
    file = Folder(path).local_path
    try:
        if os.path.getsize(file) > bounds.max_bytes:
            raise UserError(f"{file} is larger than {bounds.max_bytes} bytes, which is as much as is read.")
        with file.open("rb") as stream:
            found = json.load(stream) if file.suffix == ".json" else restricted_pickle.load(stream, bounds)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    except PickleRefused as error:
        raise UserError(f"{file} is refused: {error}. Nothing in it was run.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {str(error).splitlines()[0]}") from error
    root = Folder(pictures_root) if pictures_root else Folder(file.parent)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{file} is not an image-search cache: a table of entries by data_id is needed.")
    return {_ident(key, file): list(_hits(key, entry, file, root)) for key, entry in found.items()}


def _entries(caches: Iterable[str], root: str | None, bounds: Bounds) -> dict[str, list[CachedHit]]:
    entries: dict[str, list[CachedHit]] = {}
    for path in caches:
        for ident, hits in read_cache(path, root, bounds).items():
            if not entries.get(ident):
                entries[ident] = hits
    return entries


def _ident(key: Any, file: Path) -> str:
    if not isinstance(key, str):
        raise UserError(f"{file} is not an image-search cache: {key!r:.60} is no data_id.")
    return key


def _hits(ident: str, entry: Any, file: Path, root: Folder) -> Iterator[CachedHit]:
    titles, pictures = (_column(entry, names, ident, file) for names in (TITLES, PICTURES))
    for position, title in enumerate(titles):
        if title is not None and not isinstance(title, str):
            raise UserError(f"{file}: entry {ident!r} has a title that is no text.")
        url, picture = _thumbnail(pictures[position], ident, file, root) if position < len(pictures) else ("", None)
        hit = CachedHit((title or "").strip(), url, picture)
        if hit.title or hit.picture is not None:
            yield hit


def _column(entry: Any, names: Sequence[str], ident: str, file: Path) -> list[Any]:
    found = next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else None
    if not isinstance(found, (list, tuple)):
        raise UserError(f"{file}: entry {ident!r} has no list {' or '.join(names)}.")
    return list(found)


def _thumbnail(value: Any, ident: str, file: Path, root: Folder) -> tuple[str, Image.Image | None]:
    """(address, picture) of a result: a picture of Pillow, an address, or the path of a file."""
    if value is None:
        return "", None
    if isinstance(value, Foreign):
        return "", _picture(value, ident, file)
    if not isinstance(value, str):
        raise UserError(f"{file}: entry {ident!r} has a {type(value).__name__} for a picture.")
    if "://" in value or value.startswith("data:"):
        return (value, None) if value.startswith(("http://", "https://")) else ("", None)
    try:
        return "", pixels.decoded(root.read_bytes(value)) if value else None
    except UnreadablePicture:
        return "", None
    except ValueError as error:  # the path leads out of the folder
        raise UserError(f"{file}: entry {ident!r} names a picture that is not below {root}.") from error
    except OSError:
        return "", None


def _picture(found: Foreign, ident: str, file: Path) -> Image.Image | None:
    """A picture of Pillow from its state: [info, mode, size, palette, bytes, ...]. None when the bytes do not do."""
    state = found.state
    if not isinstance(state, (list, tuple)) or len(state) < 5:
        raise UserError(f"{file}: entry {ident!r} has a {found.name[:80]} for a picture.")
    _, mode, size, palette, data = state[:5]
    if mode not in _MODES or not isinstance(data, bytes) or not _is_size(size):
        raise UserError(f"{file}: entry {ident!r} has a picture in a form that is not known.")
    if size[0] * size[1] > MAX_PIXELS:
        return None
    try:
        picture = Image.frombytes(mode, tuple(size), data)
        if len(picture.tobytes()) != len(data):
            return None
        if mode in ("P", "PA") and isinstance(palette, list):
            picture.putpalette(palette)
        return picture.convert("RGB")
    except (ValueError, TypeError, OverflowError, MemoryError):
        return None


def _is_size(size: Any) -> bool:
    return isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)


# --- what is written ----------------------------------------------------------------------------------------


def _pictures_of(files: Sequence[sources.Source], data_id: str) -> Iterator[tuple[int, int, str, Image.Image | None]]:
    """(rows done, rows in all, data_id, picture) of every question; the first picture where there are several."""
    addresses = [str(source) for source in files]
    rows = ParquetPictures(addresses, Columns(title=data_id))
    for done, row in enumerate(rows, start=1):
        yield done, len(rows), row.title, row.picture


class _Keys:
    """The pictures that the cache answers for, and where their hits are."""

    def __init__(self) -> None:
        self.seen: set[str] = set()  # data_ids of all questions
        self.again = 0
        self._rows: list[tuple[bytes, int, int, int]] = []
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, picture: Image.Image, first: int, hits: Sequence[dict[str, Any]], writer: RowWriter) -> None:
        key = pixels.pixel_sha256(picture)
        if key in self._known:
            self.again += 1
            return
        self._known.add(key)
        self._rows.append((key, pixels.dhash(picture), first, len(hits)))
        for row in hits:
            writer.add(**row)

    def table(self) -> pa.Table:
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _KEY_SCHEMA, strict=True)]
        return pa.table(arrays, schema=_KEY_SCHEMA)


def _row(hit: CachedHit, side: int) -> dict[str, Any]:
    small = pixels.thumbnail(hit.picture, side) if hit.picture is not None and side > 0 else None
    url = hit.url or sources.local_url(hit.title, small or b"")
    return {"title": hit.title, "url": url, "text": "", "thumbnail": small}


# --- asking -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    hits: RowFile
    exact: dict[bytes, int]  # pixels to number of key
    near: np.ndarray  # uint64[comparable pictures]
    near_keys: np.ndarray  # int64[comparable pictures], their numbers
    spans: list[tuple[int, int]]  # by number of key: the first hit and how many


class CachedImageSearch(LocalEngine[_Opened]):
    """What the cache has for exactly this picture, and nothing for any other.

    `folder`: local, or s3:// (copied to `copies` once). `max_distance`: bits of dHash, of 64, in which a picture may
    differ from the cached one and still be taken for it; 0 demands equal pixels, a few allow for another size or
    compression. A picture without structure is only ever found by its pixels.
    """

    def __init__(self, folder: str, max_distance: int = 0, threads: int = 2, copies: str = "") -> None:
        super().__init__(threads)
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise UserError(f"max_distance is {max_distance} and must be in 0..{MAX_DISTANCE}.")
        self._folder, self._max_distance, self._copies = folder, max_distance, copies

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        return await self._in_thread(self._answer, image)

    def _open(self) -> _Opened:
        path, _ = index_folder.open_index(self._folder, index_folder.CACHE, self._copies)
        try:
            keys = pq.read_table(path / KEYS)
            hits = RowFile(path / HITS)
            hashes = keys["dhash"].to_pylist()
            spans = list(zip(keys["first"].to_pylist(), keys["hits"].to_pylist(), strict=True))
            exact = {key: number for number, key in enumerate(keys["pixels"].to_pylist())}
        except (OSError, ValueError, KeyError) as error:  # Arrow's errors are among them
            raise UserError(f"The index at {self._folder} is damaged: {error}. Import it anew.") from error
        near = [number for number, value in enumerate(hashes) if pixels.comparable(value)]
        values = np.array([hashes[number] for number in near], dtype=np.uint64)
        return _Opened(hits, exact, values, np.array(near, dtype=np.int64), spans)

    def _answer(self, opened: _Opened, query: ImageQuery) -> list[ImageHit]:
        try:
            picture = pixels.decoded(query.image)
        except UnreadablePicture as error:
            raise ProviderError(ErrorKind.BAD_REQUEST, f"the picture cannot be read: {error}") from error
        number = opened.exact.get(pixels.pixel_sha256(picture))
        score = 1.0
        if number is None and self._max_distance:
            number, score = _nearest(opened, pixels.dhash(picture), self._max_distance)
        if number is None or query.k < 1:
            return []
        first, count = opened.spans[number]
        rows = (opened.hits[row] for row in range(first, first + min(count, query.k)))
        return [ImageHit(row["title"], row["url"], row["text"], score, row["thumbnail"]) for row in rows]


def _nearest(opened: _Opened, value: int, max_distance: int) -> tuple[int | None, float]:
    """The key with the nearest dHash, and the part of bits that agree; equal distances: the first one."""
    if not len(opened.near) or not pixels.comparable(value):
        return None, 0.0
    distances = np.bitwise_count(opened.near ^ np.uint64(value))
    best = int(np.argmin(distances))
    distance = int(distances[best])
    return (int(opened.near_keys[best]), 1 - distance / 64) if distance <= max_distance else (None, 0.0)
