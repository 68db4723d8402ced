"""Nearest pictures by embedding: asking an index of pictures that `image_index.py` built.

The rows (titles, addresses, thumbnails) are mapped from disk, and so are the vectors where faiss can; the model that
embeds the question must be the one that the index was built with, which its digest decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.search.local import index_folder, pixels
from actors.search.local.embed import Embedder, ModelEmbedder, dimension
from actors.search.local.engine import LocalEngine
from actors.search.local.index_folder import Manifest
from actors.search.local.row_file import RowFile
from actors.search.pictures import UnreadablePicture
from actors.search.seams import ErrorKind, ImageHit, ImageQuery, ProviderError
from cluster.errors import UserError

PICTURES, VECTORS = "pictures.arrow", "vectors.faiss"
PER_HIT = 5  # rows fetched for each hit wanted, where a title or an address is to come once


@dataclass(frozen=True)
class _Opened:
    index: Any
    pictures: RowFile
    embedder: Embedder


class LocalImageSearch(LocalEngine[_Opened]):
    """The pictures of an index nearest to the one asked about, by cosine.

    `folder`: local, or s3:// (copied to `copies` once). `model`: the folder of the model that built it; "": where it
    was then. `device`, as of `ModelEmbedder`. `min_score`: cosine below which a picture is no hit. `once`: "title" or
    "url" lets only the best picture of each through. `effort`: lists probed (ivf) or candidates kept (hnsw);
    `threads`: questions at a time. `embedder` takes the model's place, for code.
    """

    def __init__(
        self,
        folder: str,
        model: str = "",
        device: str = "auto",
        min_score: float = 0.0,
        once: str = "",
        effort: int = 64,
        threads: int = 2,
        copies: str = "",
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__(threads)
        if once not in ("", "title", "url"):
            raise UserError(f"once is {once!r} and must be title, url or empty.")
        self._folder, self._model, self._device, self._copies = folder, model, device, copies
        self._min_score, self._once, self._effort = min_score, once, effort
        self._embedder = embedder

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        return await self._in_thread(self._answer, image)

    def _open(self) -> _Opened:
        import faiss

        path, manifest = index_folder.open_index(self._folder, index_folder.IMAGE, self._copies)
        embedder = self._embedder or self._model_of(manifest)
        check_model(self._folder, manifest, embedder)
        try:
            index = faiss.read_index(str(path / VECTORS), faiss.IO_FLAG_MMAP_IFC)
            pictures = RowFile(path / PICTURES)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"The index at {self._folder} is damaged: {_line(error)}. Build it anew.") from error
        if not index.ntotal == len(pictures) == manifest.count:
            raise UserError(f"The index at {self._folder} is damaged: rows and vectors differ. Build it anew.")
        _set_effort(index, self._effort)
        return _Opened(index, pictures, embedder)

    def _model_of(self, manifest: Manifest) -> Embedder:
        name = self._model or manifest.details.get("model", "")
        if not name:
            raise UserError(
                f"The index at {self._folder} was built from vectors without saying of which model: give `model`."
            )
        return ModelEmbedder(name, self._device)

    def _answer(self, opened: _Opened, query: ImageQuery) -> list[ImageHit]:
        try:
            picture = pixels.decoded(query.image)
        except UnreadablePicture as error:
            raise ProviderError(ErrorKind.BAD_REQUEST, f"the picture cannot be read: {error}") from error
        if query.k < 1:
            return []
        vector = opened.embedder.embed([picture])
        wanted = min(query.k * PER_HIT if self._once else query.k, len(opened.pictures))
        scores, found = opened.index.search(vector, wanted)
        hits: dict[Any, ImageHit] = {}
        for number, score in zip(found[0].tolist(), scores[0].tolist(), strict=True):
            if number >= 0 and score >= self._min_score:  # an approximate index may find fewer, and says -1
                row = opened.pictures[number]
                hit = ImageHit(row["title"], row["url"], row["text"], float(score), row["thumbnail"])
                hits.setdefault(row[self._once] if self._once else number, hit)
        return list(hits.values())[: query.k]


def check_model(folder: str, manifest: Manifest, embedder: Embedder) -> None:
    """Raises UserError unless `embedder` gives the vectors that the index at `folder` holds."""
    name, digest, dim = (manifest.details.get(key) for key in ("model", "model_digest", "dim"))
    if digest and embedder.digest != digest:
        raise UserError(
            f"The index at {folder} was built with the model {name}, and {embedder.name} is another one, or has"
            " changed since: give the model it was built with, or build the index anew."
        )
    found = dimension(embedder)
    if found != dim:
        raise UserError(
            f"The index at {folder} holds vectors of {dim} numbers, and the model {embedder.name} gives {found}:"
            " give the model that made them."
        )


def _set_effort(index: Any, effort: int) -> None:
    import faiss

    actual: Any = faiss.downcast_index(index)
    if isinstance(actual, faiss.IndexIVF):
        actual.nprobe = min(effort, actual.nlist)
    elif isinstance(actual, faiss.IndexHNSW):
        actual.hnsw.efSearch = effort


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
