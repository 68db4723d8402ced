"""Weights through a folder: shared memory on one node, and what the other transports land in.

`send` lays tensors into safetensors files of a hidden folder and renames it to `v000007` when everything is there: a
reader sees a version whole or not at all. The folder is in Hugging Face layout with the model's config, so vLLM's
`reload_weights(weights_path=...)` takes it as it is. The last two versions are kept: one may still be loading while
the next is written. The files of a version that is not kept are written over by the next one, for their pages are
there already; a version that somebody reads (`reading`) is left alone until they are done. A root has one writer at a
time, who first deletes what one that was killed has left.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from actors.weights.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    SINGLE_FILE,
    TornPublish,
    WeightEntry,
    WeightTicket,
    make_ticket,
    verify,
    weight_files,
    write_ticket,
)
from actors.weights.shards import Bytes, MappedFile, Shard, pieces_of, shards

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2 << 30  # of one safetensors file
CONFIG_FILES = ("config.json", "generation_config.json")
Pieces = Iterable["tuple[str, str, tuple[int, ...], Bytes | Tensor]"]


class WeightTransport(Protocol):
    """The learner's end of a way for weights to travel; the sampler's is `receiver.Receiver`."""

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Consume (Hugging Face name, tensor) pairs, each valid until the next is asked for; return the receipt."""
        ...

    def opened(self, version: int) -> AbstractContextManager[Path]:
        """A local folder with the newest version that was sent, or, by the transport, an earlier one. Raise
        `TornPublish` for one that is gone."""
        ...

    def close(self) -> None:
        """Free what the transport holds."""
        ...


def default_root(run: str) -> Path:
    """Shared memory where there is any, else the temporary folder."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"mmsearch-{run}-{os.getuid()}"


class FolderTransport:
    """Versions under `root/v000007`; `config_from` is a model folder whose config files go with them."""

    def __init__(
        self, root: Path, config_from: Path | None = None, *, keep: int = 2, shard_bytes: int = SHARD_BYTES
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: the version just sent must stay")
        self.root = Path(root)
        self._config_from = None if config_from is None else Path(config_from)
        self._keep = keep
        self._shard_bytes = shard_bytes
        self._files: dict[int, list[MappedFile]] = {}  # of versions that were sent from here

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Write, rename, forget the oldest. A version sent again (after a resume) replaces the earlier one.

        Raise OSError where there is no room; no version is then left half-written.
        """
        return self.send_pieces(version, pieces_of(weights))

    def send_pieces(self, version: int, pieces: Pieces) -> WeightTicket:
        """The same of (name, dtype, shape, bytes)."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._delete_unfinished()
        target = self.folder(version)
        unfinished = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{target.name}-"))
        written: list[MappedFile] = []
        spare = self._forgotten(version, unfinished)
        try:
            manifest = _write(pieces, unfinished, self._shard_bytes, written, spare)
            for file in spare:
                file.path.unlink()
            self._copy_config(unfinished)
            ticket = make_ticket(version, target, manifest)
            write_ticket(ticket, unfinished)
            self._put_in_place(unfinished, target)
        except BaseException:
            _let_go([*written, *spare])
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _let_go([*spare, *self._files.pop(version, [])])
        for file in written:
            file.path = target / file.path.name
        self._files[version] = written
        return ticket

    @staticmethod
    def _put_in_place(unfinished: Path, target: Path) -> None:
        if not target.exists():
            unfinished.rename(target)
            return
        replaced = unfinished.with_name(unfinished.name + "-old")
        target.rename(replaced)
        unfinished.rename(target)
        shutil.rmtree(replaced)

    def receive(self, ticket: WeightTicket) -> Iterator[tuple[str, Tensor]]:
        """The tensors, after every byte was checked."""
        from safetensors import safe_open

        with reading(Path(ticket.folder)):
            verify(ticket)
            for file in weight_files(Path(ticket.folder)):
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        yield name, opened.get_tensor(name)

    @contextmanager
    def opened(self, version: int) -> Iterator[Path]:
        folder = self.folder(version)
        with reading(folder):
            weight_files(folder)
            yield folder

    def folder(self, version: int) -> Path:
        return self.root / f"v{version:06d}"

    def versions(self) -> list[int]:
        """Versions that can be received, ascending."""
        return sorted(int(path.name[1:]) for path in self.root.glob("v[0-9]*"))

    def discard(self, version: int) -> None:
        """Delete a version that was sent from here."""
        shutil.rmtree(self.folder(version), ignore_errors=True)
        _let_go(self._files.pop(version, []))

    def close(self) -> None:
        """Delete every version, and the root when nothing else is in it."""
        self._delete_unfinished()
        for version in self.versions():
            shutil.rmtree(self.folder(version), ignore_errors=True)
        for files in self._files.values():
            _let_go(files)
        self._files.clear()
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def _delete_unfinished(self) -> None:
        """What a writer that was killed left behind: nobody else writes here, and readers never look there."""
        for left in self.root.glob(".v[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)

    def _copy_config(self, folder: Path) -> None:
        for name in CONFIG_FILES:
            if self._config_from is not None and (self._config_from / name).is_file():
                shutil.copyfile(self._config_from / name, folder / name)

    def _forgotten(self, newest: int, unfinished: Path) -> list[MappedFile]:
        """Delete all versions that are not kept once `newest` is there, but those that are being read.

        Returns the files of one of them, moved to the folder `unfinished`, to be written over. Versions later than
        `newest` are those of a writer that was killed before a resume.
        """
        versions = self.versions()
        kept = sorted({version for version in versions if version < newest} | {newest})[-self._keep :]
        spare: list[MappedFile] = []
        for version in versions:
            gone = unfinished / "forgotten"
            taken = None if version in kept else _taken_away(self.folder(version), gone)
            if taken is None:
                continue
            files = self._files.pop(version, [])
            if spare or not taken.alone:
                _let_go(files)
            else:
                for number, file in enumerate(files):
                    file.path = gone / file.path.name
                    file.move(unfinished / f"spare-{number:05d}")
                spare = files
            shutil.rmtree(gone)
        return spare


def write_weights(
    weights: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[WeightEntry]:
    """Tensors as safetensors files of at most `shard_bytes` each (plus one tensor), with Hugging Face's index."""
    written: list[MappedFile] = []
    try:
        return _write(pieces_of(weights), folder, shard_bytes, written, [])
    finally:
        _let_go(written)


def _write(
    pieces: Pieces, folder: Path, shard_bytes: int, written: list[MappedFile], spare: list[MappedFile]
) -> list[WeightEntry]:
    """Files come from `spare`, where there are any that are large enough, and go to `written`."""

    def begin(capacity: int) -> Shard:
        fitting = [file for file in spare if file.fits(capacity)]
        if fitting:
            spare.remove(fitting[0])
        file = fitting[0] if fitting else MappedFile(folder / f"part-{len(written):05d}", capacity)
        written.append(file)
        return Shard(file.memory, file.reserve)

    manifest: list[WeightEntry] = []
    weight_map: dict[str, str] = {}
    for shard in shards(pieces, shard_bytes, begin):
        written[-1].cut(len(shard.finish()))
        manifest += shard.entries
        weight_map |= {entry.name: f"model-{len(written):05d}.safetensors" for entry in shard.entries}
    if len(written) == 1:
        written[0].move(folder / SINGLE_FILE)
        return manifest
    for number, file in enumerate(written, 1):
        file.move(folder / f"model-{number:05d}.safetensors")
    (folder / INDEX_FILE).write_text(index_json(weight_map))
    return manifest


def index_json(weight_map: Mapping[str, str]) -> str:
    """Hugging Face's index of a model in several files: name -> file."""
    return json.dumps({"metadata": {}, "weight_map": weight_map})


def _let_go(files: Iterable[MappedFile]) -> None:
    for file in files:
        file.close()


# -- who reads what is not taken away --


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """While this lasts, who published the folder neither deletes it nor writes it over, as far as its file system has
    locks. Raise `TornPublish` when it is about to go. A model folder that nobody published needs no lock."""
    try:
        manifest = os.open(folder / MANIFEST_FILE, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        if _locked(manifest, fcntl.LOCK_SH) == "by another" or not _same_file(manifest, folder / MANIFEST_FILE):
            raise TornPublish(f"{folder} was taken away: it is no longer one of the last versions")
        yield
    finally:
        os.close(manifest)


@dataclass(frozen=True)
class _Taken:
    alone: bool  # nobody can be reading it, so that it may be written over


def _taken_away(folder: Path, target: Path) -> _Taken | None:
    """Rename a version, unless somebody reads it."""
    try:
        manifest = os.open(folder / MANIFEST_FILE, os.O_RDONLY)
    except FileNotFoundError:
        folder.rename(target)
        return _Taken(alone=False)
    try:
        held = _locked(manifest, fcntl.LOCK_EX)
        if held == "by another":
            return None
        folder.rename(target)
        return _Taken(alone=held == "yes")
    finally:
        os.close(manifest)


def _locked(descriptor: int, how: int) -> Literal["yes", "by another", "no locks"]:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return "by another"
    except OSError:  # a file system without locks: what is deleted there stays for whoever has it open
        return "no locks"
    return "yes"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
