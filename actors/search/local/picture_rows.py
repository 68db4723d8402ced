"""Pictures to be indexed: from a folder of files, or from rows of Parquet files with titles and addresses.

A picture that cannot be read is left out and counted; a column or file that is not what it should be stops the build.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from actors.search.local import pixels, sources
from actors.search.local.sources import Source
from actors.search.pictures import UnreadablePicture
from cluster.errors import UserError
from cluster.storage import Folder

BATCH_ROWS = 256
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "images", "path")
TITLE_COLUMNS, URL_COLUMNS, TEXT_COLUMNS = ("title",), ("url",), ("text", "caption")


@dataclass(frozen=True)
class PictureRow:
    """`picture` is None where none was given (there is a vector then) or none could be read."""

    title: str
    url: str
    text: str
    picture: Image.Image | None = None
    vector: np.ndarray | None = None


@dataclass(frozen=True)
class Columns:
    """Names of columns; None: the usual name, where it is there."""

    image: str | None = None
    title: str | None = None
    url: str | None = None
    text: str | None = None
    vector: str | None = None


class FolderPictures:
    """The picture files below a folder, by name; a file's name, without its ending and with blanks, is its title."""

    def __init__(self, address: str) -> None:
        self._folder = Folder(address)
        self._names = [name for name in self._folder.files() if name.lower().endswith(ENDINGS)]
        if not self._names:
            raise UserError(f"There are no pictures ({', '.join(ENDINGS)}) and no Parquet files at {self._folder}.")

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[PictureRow]:
        for name in self._names:
            stem = PurePosixPath(name or self._folder.name).stem
            data = self._folder.read_bytes(name)
            yield PictureRow(_spaced(stem), sources.local_url(data), "", _picture(data))


class ParquetPictures:
    """Rows of Parquet files. A picture is bytes, a record with `bytes` or `path`, a list with one of these first, or
    the path of a file below `root` (default: the folder of the Parquet file)."""

    def __init__(
        self, addresses: Sequence[str], columns: Columns, root: str | None = None, pictures_needed: bool = True
    ) -> None:
        self._files = sources.parquet_files(addresses)
        self._vector = sources.the_column(self._files, columns.vector, (), "the vectors")
        find = sources.need_column if pictures_needed and self._vector is None else sources.the_column
        self._image = find(self._files, columns.image, IMAGE_COLUMNS, "the pictures")
        self._title = sources.the_column(self._files, columns.title, TITLE_COLUMNS, "the title")
        self._url = sources.the_column(self._files, columns.url, URL_COLUMNS, "the address")
        self._text = sources.the_column(self._files, columns.text, TEXT_COLUMNS, "the text")
        for column in (self._title, self._url, self._text):
            if column is not None:
                sources.need_strings(self._files, column)
        self._root = Folder(root) if root is not None else None
        self._count = sources.row_count(self._files)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PictureRow]:
        wanted = {self._image, self._title, self._url, self._text, self._vector} - {None}
        columns = sorted(column for column in wanted if column)
        for source in self._files:
            root = self._root or _beside(source)
            number = 0
            for batch in sources.rows([source], columns, BATCH_ROWS):
                for row in batch:
                    yield self._row(row, root, f"row {number} of {source}")
                    number += 1

    def _row(self, row: dict[str, Any], root: Folder, where: str) -> PictureRow:
        title, url, text = (
            (row[column] or "").strip() if column else "" for column in (self._title, self._url, self._text)
        )
        data = _bytes_of(row[self._image], root, f"column {self._image!r}, {where}") if self._image else None
        vector = None
        if self._vector is not None:
            vector = _vector_of(row[self._vector], f"column {self._vector!r}, {where}")
        url = url or sources.local_url(data or (b"" if vector is None else vector.tobytes()), title, text)
        return PictureRow(title, url, text, _picture(data), vector)


def _beside(source: Source) -> Folder:
    """The folder of a Parquet file."""
    if source.name:
        parent = PurePosixPath(source.name).parent.as_posix()
        return source.folder if parent == "." else source.folder / parent
    path = source.folder.address
    head, mark, query = path.partition("?")
    return Folder(head.rpartition("/")[0] + mark + query)


def _bytes_of(value: Any, root: Folder, where: str) -> bytes | None:
    """What a cell holds for a picture; None for nothing, or a file that is not there. Raises UserError."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value or None
    if not isinstance(value, str):
        raise UserError(f"A picture is bytes or the path of a file, and {where} holds {type(value).__name__}.")
    name = value.removeprefix(f"{root.address}/")
    try:
        return root.read_bytes(name)
    except ValueError as error:
        raise UserError(f"The path {value!r} in {where} leads out of {root}; give another --pictures-root.") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _vector_of(value: Any, where: str) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"A vector is a list of numbers, and there is none in {where}.") from error
    if vector.ndim != 1 or not len(vector):
        raise UserError(f"A vector is a list of numbers, and there is none in {where}.")
    return vector


def _picture(data: bytes | None) -> Image.Image | None:
    try:
        return pixels.decoded(data) if data else None
    except UnreadablePicture:
        return None


def _spaced(stem: str) -> str:
    return " ".join(stem.replace("_", " ").replace("-", " ").split())
