"""BM25 over passages of one's own, by bm25s: building the index, and asking it.

What is bounded when building: rows are read batch by batch, passages and their tokens go to disk as they come, so that
memory holds the vocabulary and one group of rows. What is not: bm25s computes all scores at once, with some 50 bytes
for every pair of a passage and a word in it; `build_text_index` says how many there are before it begins.

What is bounded when asking: scores and passages are mapped from disk. The vocabulary is held, and a question takes
four bytes a passage while it is worked on.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.search.local import index_folder, sources
from actors.search.local.engine import LocalEngine
from actors.search.local.index_folder import Manifest
from actors.search.local.row_file import PASSAGE, RowFile, RowWriter
from actors.search.seams import TextHit, TextQuery
from cluster.errors import UserError

PASSAGES, BM25, TOKENS = "passages.arrow", "bm25", "tokens.i32"
BATCH_ROWS = 2048
BYTES_PER_POSTING = 50  # scores, passage and word numbers, and what sorting them takes
TEXT_COLUMNS = ("text", "contents")
TITLE_COLUMNS, URL_COLUMNS = ("title",), ("url",)
_QUOTED_TITLE = re.compile(r'\A"([^\n]*)"[^\S\n]*(?:\n|\Z)')

Progress = Callable[[int, int], None]  # rows done, rows in all
Say = Callable[[str], None]


def build_text_index(
    parquet: Sequence[str],
    folder: str,
    *,
    text_column: str | None = None,
    title_column: str | None = None,
    url_column: str | None = None,
    stopwords: str = "en",
    force: bool = False,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
) -> Manifest:
    """Write an index of the passages in `parquet` (files or folders of them, local or s3://) to `folder`.

    Columns default to text (or contents), title and url, the last two where they are there. A text in Search-R1's
    form, its title quoted on the first line, is taken apart where no column has the titles. A passage without address
    gets one of its content; one without title and text is left out. `stopwords`: a language that bm25s knows (en, de,
    fr, ...), or "" for none. Words are runs of two or more letters, digits or underscores: text written without spaces
    between words must have them put in. Raises UserError.
    """
    files = sources.parquet_files(parquet)
    text = sources.need_column(files, text_column, TEXT_COLUMNS, "the text")
    title = sources.the_column(files, title_column, TITLE_COLUMNS, "the title")
    url = sources.the_column(files, url_column, URL_COLUMNS, "the address")
    for column in (text, title, url):
        if column is not None:
            sources.need_strings(files, column)
    tokenizer = Tokenizer(stopwords)
    total = sources.row_count(files)
    with index_folder.staged(folder, force) as staging:
        read = 0
        with (
            RowWriter(staging.path / PASSAGES, PASSAGE, BATCH_ROWS) as writer,
            _Spill(staging.path / TOKENS) as spill,
        ):
            columns = [column for column in (text, title, url) if column is not None]
            for batch in sources.rows(files, columns, BATCH_ROWS):
                passages = [found for row in batch if (found := _passage(row, text, title, url))]
                for one in passages:
                    writer.add(title=one.title, url=one.url, text=one.text)
                spill.add([f"{one.title} {one.text}" for one in passages], tokenizer)
                read += len(batch)
                progress(read, total)
            skipped = read - writer.count
        if not spill.vocabulary:
            raise UserError(
                f"There is no word in column {text!r} of {', '.join(map(str, files[:3]))}: nothing to index."
            )
        gib = spill.postings * BYTES_PER_POSTING / 2**30
        say(
            f"{writer.count:,} passages, {spill.postings:,} words in them: indexing takes about {gib:.2f} GiB of memory"
        )
        _index(spill, staging.path / BM25)
        (staging.path / TOKENS).unlink()
        details = {"stopwords": stopwords, "columns": {"text": text, "title": title, "url": url}, "skipped": skipped}
        details |= {"vocabulary": len(spill.vocabulary), "sources": [str(source) for source in files[:100]]}
        return staging.finish(index_folder.TEXT, writer.count, writer.digest, details)


@dataclass(frozen=True)
class _Opened:
    index: Any
    passages: RowFile
    tokenizer: Tokenizer


class LocalTextSearch(LocalEngine[_Opened]):
    """The passages of an index with a word of the query in them, best first by BM25, equal ones in the corpus's order.

    `folder`: local, or s3:// (copied to `copies` once). `threads`: questions worked on at a time; each takes a float
    for every passage of the corpus.
    """

    def __init__(self, folder: str, threads: int = 2, copies: str = "") -> None:
        super().__init__(threads)
        self._folder, self._copies = folder, copies

    async def search(self, query: TextQuery) -> list[TextHit]:
        return await self._in_thread(_answer, query)

    def _open(self) -> _Opened:
        import bm25s

        path, manifest = index_folder.open_index(self._folder, index_folder.TEXT, self._copies)
        tokenizer = Tokenizer(manifest.details.get("stopwords", "en"))
        try:
            index = bm25s.BM25.load(path / BM25, mmap=True, load_corpus=False, show_progress=False)
            return _Opened(index, RowFile(path / PASSAGES), tokenizer)
        except (OSError, ValueError, TypeError, KeyError) as error:  # Arrow's errors are ValueErrors
            raise UserError(f"The index at {self._folder} is damaged: {error}. Build it anew.") from error


def _answer(opened: _Opened, query: TextQuery) -> list[TextHit]:
    words = [word for word in opened.tokenizer.words(query.text) if word in opened.index.vocab_dict]
    if not words or query.k < 1:
        return []
    scores = opened.index.get_scores(words)
    hits: list[TextHit] = []
    for number in _best(scores, query.k):
        row = opened.passages[number]
        hits.append(TextHit(row["title"], row["url"], row["text"], float(scores[number])))
    return hits


def _best(scores: np.ndarray, k: int) -> list[int]:
    """Row numbers of the `k` highest scores above 0, best first; equal ones by number. scores: float[passages]"""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= least]
    return rows[np.lexsort((rows, -scores[rows]))][:k].tolist()


class Tokenizer:
    """Text to words as bm25s does it, the same for passages and queries."""

    def __init__(self, stopwords: str) -> None:
        self._stopwords: Any = stopwords or None
        try:
            self.numbered(["a"])
        except ValueError as error:
            raise UserError(f"bm25s knows no stopwords for {stopwords!r}: give en, de, fr, es, ... or none.") from error

    def words(self, text: str) -> list[str]:
        import bm25s

        found: Any = bm25s.tokenize(text, stopwords=self._stopwords, show_progress=False, return_ids=False)
        return found[0]

    def numbered(self, texts: list[str]) -> tuple[list[list[int]], dict[str, int]]:
        """Each text as numbers of words, and the words' numbers, for these texts alone."""
        import bm25s

        found: Any = bm25s.tokenize(texts, stopwords=self._stopwords, show_progress=False)
        return found.ids, found.vocab


class _Spill:
    """Tokens of passages, on disk: numbers of words one after another, and where each passage ends."""

    def __init__(self, path: Path) -> None:
        self.vocabulary: dict[str, int] = {}
        self.postings = 0  # different words, summed over passages
        self._path = path
        self._stream = path.open("wb")
        self._lengths = array("q")

    def __enter__(self) -> _Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, texts: list[str], tokenizer: Tokenizer) -> None:
        ids, vocabulary = tokenizer.numbered(texts)
        known = self.vocabulary
        renumber = np.fromiter(
            (known.setdefault(word, len(known)) for word in vocabulary), dtype=np.int32, count=len(vocabulary)
        )
        for one in ids:
            numbers = renumber[np.asarray(one, dtype=np.int64)]
            self.postings += len(np.unique(numbers))
            self._lengths.append(len(numbers))
            self._stream.write(numbers.tobytes())

    def passages(self) -> _Passages:
        return _Passages(self._path, np.frombuffer(self._lengths, dtype=np.int64))


class _Passages:
    """Token numbers of each passage, read from disk each time: what bm25s goes through three times."""

    def __init__(self, path: Path, lengths: np.ndarray) -> None:
        self._ends = np.cumsum(lengths)
        self._tokens = np.memmap(path, dtype=np.int32, mode="r")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for end in self._ends.tolist():
            yield self._tokens[start:end].tolist()
            start = end


@dataclass(frozen=True)
class _Corpus:
    """What `bm25s.BM25.index` takes for tokens with their vocabulary."""

    ids: _Passages
    vocab: dict[str, int]


def _index(spill: _Spill, path: Path) -> None:
    import bm25s

    index = bm25s.BM25()
    corpus: Any = _Corpus(spill.passages(), dict(spill.vocabulary))
    index.index(corpus, show_progress=False)
    index.save(path, show_progress=False)


def _passage(row: dict[str, Any], text: str, title: str | None, url: str | None) -> TextHit | None:
    """None for a row that says nothing."""
    body, head, address = row[text] or "", (row[title] or "") if title else "", (row[url] or "") if url else ""
    if title is None and (quoted := _QUOTED_TITLE.match(body)):
        head, body = quoted.group(1), body[quoted.end() :]
    head, body, address = head.strip(), body.strip(), address.strip()
    if not (head or body):
        return None
    return TextHit(head, address or sources.local_url(head, body), body)
