"""Building an index of pictures: embed them, or take vectors as they are, and put them into faiss.

Pictures are read, embedded and let go batch by batch; vectors go to a file first, so that their number is known when
the kind of index is chosen, and faiss's index, which is about as large as that file, is what memory holds in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actors.search.local import index_folder, pixels
from actors.search.local.embed import Embedder, FloatVectors, ModelEmbedder, dimension, unit_rows
from actors.search.local.image import PICTURES, VECTORS
from actors.search.local.index_folder import Manifest
from actors.search.local.picture_rows import Columns, FolderPictures, ParquetPictures, PictureRow
from actors.search.local.row_file import PICTURE, RowWriter
from actors.search.local.text import Progress, Say
from cluster.errors import UserError
from cluster.storage import Folder

BATCH = 256  # pictures held at a time
RAW = "vectors.f32"
EXACT_BELOW = 200_000  # vectors; beyond, a question no longer looks at each of them
HNSW_LINKS = 32
IVF_PER_LIST = 39  # vectors a list that faiss wants at least for training
ADD_ROWS = 65_536
KINDS = ("auto", "flat", "ivf", "hnsw")


def build_image_index(
    source: Sequence[str],
    folder: str,
    *,
    model: str | None = None,
    vectors: str | None = None,
    columns: Columns | None = None,
    pictures_root: str | None = None,
    device: str = "auto",
    batch: int = 32,
    index: str = "auto",
    exact_below: int = EXACT_BELOW,
    thumbnail_side: int = 224,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
    embedder: Embedder | None = None,
) -> Manifest:
    """Write an index of pictures to `folder`. Raises UserError.

    `source`: Parquet files or folders of them, or one folder of picture files. Vectors come from `model` (a folder),
    or from `vectors` (a .npy of [rows, dim], parallel to the rows) or `columns.vector`; the pictures are then only
    for thumbnails and may be missing, and `model` only says what a question is to be embedded with. `index`: flat is
    exact, ivf and hnsw are not; auto is flat below `exact_below` vectors and hnsw from there on. `thumbnail_side`:
    pixels at most, 0 for no thumbnails. A picture that cannot be read is left out, unless it has a vector.
    """
    columns = columns or Columns()
    if index not in KINDS:
        raise UserError(f"index is {index!r} and must be one of {', '.join(KINDS)}.")
    if embedder is None and model is not None:
        embedder = ModelEmbedder(model, device, batch)
    rows = _rows(source, columns, pictures_root, vectors is None)
    given = _given_vectors(vectors, columns, rows)
    if embedder is None and given is None and columns.vector is None:
        raise UserError("An index of pictures needs --model, or vectors: --vectors or --vector-column.")
    with index_folder.staged(folder, force) as staging:
        with RowWriter(staging.path / PICTURES, PICTURE, BATCH) as writer, _Raw(staging.path / RAW) as raw:
            made = None if given is not None or columns.vector is not None else embedder
            read = _fill(writer, raw, rows, given, made, thumbnail_side, progress)
        if not writer.count:
            raise UserError(f"None of the {read} pictures in {', '.join(source)} could be read.")
        if embedder is not None and made is None and (found := dimension(embedder)) != raw.dim:
            raise UserError(f"The vectors have {raw.dim} numbers, and the model {embedder.name} gives {found}.")
        stored = np.memmap(staging.path / RAW, dtype=np.float32, mode="r", shape=(writer.count, raw.dim))
        kind = ("flat" if writer.count < exact_below else "hnsw") if index == "auto" else index
        say(f"{writer.count:,} pictures, vectors of {raw.dim} numbers: putting them into a {kind} index")
        _write_faiss(stored, kind, staging.path / VECTORS)
        del stored
        (staging.path / RAW).unlink()
        details: dict[str, Any] = {"dim": raw.dim, "index": kind, "thumbnail_side": thumbnail_side}
        details |= {"model": embedder.name if embedder else "", "model_digest": embedder.digest if embedder else ""}
        details |= {"skipped": read - writer.count, "sources": list(source[:100])}
        digest = hashlib.sha256((writer.digest + raw.digest.hexdigest()).encode()).hexdigest()
        return staging.finish(index_folder.IMAGE, writer.count, digest, details)


def _rows(
    source: Sequence[str], columns: Columns, root: str | None, pictures_needed: bool
) -> FolderPictures | ParquetPictures:
    if len(source) == 1 and not any(name.endswith(".parquet") or not name for name in Folder(source[0]).files()):
        if any((columns.image, columns.title, columns.url, columns.text, columns.vector)):
            raise UserError(f"There are no Parquet files at {source[0]}, so that no column can be named.")
        return FolderPictures(source[0])
    return ParquetPictures(source, columns, root, pictures_needed)


def _given_vectors(address: str | None, columns: Columns, rows: FolderPictures | ParquetPictures) -> Any:
    """[rows, dim], mapped from disk; None where none are given."""
    if address is None:
        return None
    if columns.vector is not None:
        raise UserError("Give --vectors or --vector-column, not both.")
    path = Folder(address).local_path
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy file: {str(error).splitlines()[0]}") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or not found.shape[1]:
        raise UserError(f"{path} must hold floating-point numbers of the shape [rows, dim].")
    if len(found) != len(rows):
        raise UserError(f"{path} holds {len(found)} vectors for {len(rows)} rows.")
    return found


def _fill(
    writer: RowWriter,
    raw: _Raw,
    rows: FolderPictures | ParquetPictures,
    given: Any,
    embedder: Embedder | None,
    side: int,
    progress: Progress,
) -> int:
    """Writes rows and vectors, parallel; how many rows were read."""
    read, total, left = 0, len(rows), iter(rows)
    while batch := list(islice(left, BATCH)):
        if given is not None:
            found = np.asarray(given[read : read + len(batch)])
        elif embedder is not None:
            batch_read, batch = len(batch), [row for row in batch if row.picture is not None]
            found = embedder.embed([row.picture for row in batch if row.picture is not None]) if batch else None
            read += batch_read - len(batch)
        else:
            found = _stacked(batch)
        if found is not None:
            raw.add(found)
            for row in batch:
                small = pixels.thumbnail(row.picture, side) if side > 0 and row.picture is not None else None
                writer.add(title=row.title, url=row.url, text=row.text, thumbnail=small)
        read += len(batch)
        progress(read, total)
    return read


def _stacked(batch: Sequence[PictureRow]) -> np.ndarray:
    vectors = [row.vector for row in batch if row.vector is not None]
    lengths = {len(vector) for vector in vectors}
    if len(lengths) != 1:
        raise UserError(f"Vectors must be of one length, and there are {sorted(lengths)}.")
    return np.stack(vectors)


class _Raw:
    """Unit vectors appended to a file. Raises UserError for vectors that cannot be compared."""

    def __init__(self, path: Path) -> None:
        self.dim = 0
        self.digest = hashlib.sha256()
        self._stream = path.open("wb")

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, vectors: np.ndarray) -> None:
        try:
            rows = unit_rows(vectors)
        except ValueError as error:
            raise UserError(f"The vectors cannot be used: {error}.") from error
        if self.dim not in (0, rows.shape[1]):
            raise UserError(f"Vectors must be of one length, and there are {self.dim} and {rows.shape[1]}.")
        self.dim = rows.shape[1]
        self.digest.update(rows.tobytes())
        self._stream.write(rows.tobytes())


def _write_faiss(vectors: FloatVectors, kind: str, path: Path) -> None:
    """vectors: [n, dim], of unit length, so that the inner product is the cosine."""
    import faiss

    count, dim = vectors.shape
    index: Any
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(1, min(int(4 * count**0.5), count // IVF_PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(count)[: lists * 256]
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    for start in range(0, count, ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS]))
    faiss.write_index(index, str(path))
