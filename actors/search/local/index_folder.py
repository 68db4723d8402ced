"""An index as a folder: written aside and moved into its place whole, with a manifest that says what it holds.

Always true:
- a folder without a manifest is no index, and the manifest is the last file that is written;
- a failed or killed build leaves what was at the address before, or nothing (and, when it was killed, a hidden
  folder `.NAME.part-*` beside it);
- only an index, or an empty folder, is ever replaced, and that only when it is asked for;
- an index whose files are not of the sizes in its manifest is refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.storage import Folder

MANIFEST = "manifest.json"
VERSION = 1
TEXT, IMAGE, CACHE = "text", "image", "image_cache"
KINDS = {TEXT: "an index of passages", IMAGE: "an index of pictures", CACHE: "an image-search cache"}


@dataclass(frozen=True)
class Manifest:
    """What an index holds. `digest`: of its rows and vectors, the same for the same content in the same order."""

    kind: str
    count: int  # passages, pictures, or pictures that the cache answers for
    digest: str
    details: dict[str, Any] = field(default_factory=dict)  # how it was built; see each kind's builder
    files: dict[str, int] = field(default_factory=dict)  # bytes by name
    made_at: float = 0.0  # unix seconds
    version: int = VERSION


class Staging:
    """A folder being written. Nothing is seen at its address before `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None

    def finish(self, kind: str, count: int, digest: str, details: dict[str, Any]) -> Manifest:
        files = {file.relative_to(self.path).as_posix(): file.stat().st_size for file in _files(self.path)}
        self.manifest = Manifest(kind, count, digest, details, files, time.time())
        Folder(self.path).write_json(MANIFEST, asdict(self.manifest))
        return self.manifest


@contextmanager
def staged(address: str, force: bool = False) -> Iterator[Staging]:
    """A place to write an index that takes its place at `address` on leaving. Local, or s3:// by way of a local copy.

    Raises UserError where something is at the address that may not be replaced.
    """
    target = Folder(address)
    _check_replaceable(target, force)
    parent = target.local_path.parent if target.is_local else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=parent))
    except OSError as error:
        raise UserError(f"{target} cannot be written to: {error.strerror or error}.") from error
    try:
        staging = Staging(path)
        yield staging
        if staging.manifest is None:
            raise AssertionError("an index was not finished")
        _check_replaceable(target, force)  # it may have taken hours
        _publish(path, target)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Folder) -> Manifest:
    """Raises UserError where there is no index, or one that this version cannot read."""
    try:
        found = folder.read_json(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no index at {folder}: build one with `mmsearch index build`.") from error
    except ValueError as error:
        raise UserError(f"{folder}/{MANIFEST} is not the manifest of an index: it is no JSON.") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise UserError(f"The index at {folder} has version {version!r}, and this one reads {VERSION}: build it anew.")
    try:
        return Manifest(**found)
    except TypeError as error:
        raise UserError(f"{folder}/{MANIFEST} is not the manifest of an index.") from error


def open_index(address: str, kind: str, copies: str = "") -> tuple[Path, Manifest]:
    """The checked local folder of an index of this kind; one on s3:// is copied once to `copies` (default: the
    system's folder for temporary files). Raises UserError."""
    folder = Folder(address)
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise UserError(f"{folder} is {KINDS.get(manifest.kind, manifest.kind)}, and {KINDS[kind]} is needed here.")
    path = folder.local_path if folder.is_local else _copied(folder, manifest, copies)
    for name, size in manifest.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(f"The index at {folder} is damaged: {name} {what}. Build or copy it anew.")
    return path, manifest


def _check_replaceable(target: Folder, force: bool) -> None:
    if target.is_local and target.local_path.is_file():
        raise UserError(f"{target} is a file, and an index is a folder.")
    names = target.list()
    if not names:
        return
    if MANIFEST not in names:
        raise UserError(f"{target} holds other things than an index: give a new folder.")
    if _kind(target) not in KINDS:
        raise UserError(f"{target}/{MANIFEST} is not the manifest of an index: give a new folder.")
    if not force:
        raise UserError(f"There is an index at {target} already: give --force to replace it.")


def _kind(folder: Folder) -> str:
    """The kind of whatever index is there, of any version; "" where there is none."""
    try:
        found = folder.read_json(MANIFEST)
    except (OSError, ValueError):
        return ""
    kind = found.get("kind") if isinstance(found, dict) else ""
    return kind if isinstance(kind, str) else ""


def _publish(path: Path, target: Folder) -> None:
    if not target.is_local:
        target.delete(MANIFEST)  # from here on it is no index, until the last file has arrived
        target.delete()
        for file in sorted(_files(path), key=lambda file: file.name == MANIFEST):
            target.upload(file, file.relative_to(path).as_posix())
        return
    place = target.local_path
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o777 & ~mask)  # a temporary folder is for its owner alone, an index for all who may
    old: Path | None = None
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}.old-", dir=place.parent))
        os.rename(place, old)  # over the empty folder; engines that have it open keep reading it
    try:
        os.rename(path, place)
    except OSError:
        if old is not None:
            os.rename(old, place)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _copied(folder: Folder, manifest: Manifest, copies: str) -> Path:
    root = Path(copies) if copies else Path(tempfile.gettempdir()) / f"mmsearch-indexes-{os.getuid()}"
    target = root / f"{folder.name}-{manifest.digest[:16]}-{int(manifest.made_at)}"
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
        try:
            folder.download(part)
            with suppress(OSError):  # another process was faster
                os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())
