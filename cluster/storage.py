"""One door to files: a `Folder` is a local directory or an `s3://bucket/prefix`, and the same calls work on
both.

Credentials come by the usual AWS chain; AWS_ENDPOINT_URL (or `?endpoint_override=host:port&scheme=http` in
the address) points at MinIO and the like. Always true: a file that can be read is whole. Locally it appears
by renaming, on S3 by the completion of the upload (`cluster.drives`). A tree that is copied has no such promise:
write the file that declares it complete last.

A Folder holds an address and opens its file system where it is used, so it can be pickled to any process.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.drives import Drive, LocalDrive, S3Drive
from cluster.errors import UserError
from cluster.storage_failures import reason_of

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

TAIL = 1 << 20  # bytes at a file's end that a fingerprint looks at


class Folder:
    """A directory by address. File names are relative to it, with `/` between their parts."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        text = os.fspath(address)
        scheme, query = (urlsplit(text).scheme, urlsplit(text).query) if "://" in text else ("", "")
        if scheme not in ("", "file", "s3"):
            raise UserError(f"{text} cannot be used for files: give a local path or an s3:// address.")
        self.scheme = "s3" if scheme == "s3" else "local"
        self._query = query if scheme == "s3" else ""
        if self.scheme == "s3":
            path = text.removeprefix("s3://").partition("?")[0].strip("/")
            if not path:
                raise UserError(f"{text} names no bucket; write s3://bucket/prefix.")
        else:
            path = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
        self.path = path
        self._opened: Drive | None = None

    # --- the address ----------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """What `Folder(...)` takes to mean this one, from any working directory."""
        if self.scheme == "local":
            return self.path
        return f"s3://{self.path}" + (f"?{self._query}" if self._query else "")

    @property
    def is_local(self) -> bool:
        return self.scheme == "local"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def local_path(self) -> Path:
        """The directory itself; raises UserError where there is none because the folder is remote."""
        if not self.is_local:
            raise UserError(f"{self.address} is not on this machine, and a local folder is needed here.")
        return Path(self.path)

    def __truediv__(self, name: str) -> Folder:
        child = Folder.__new__(Folder)
        child.scheme, child._query, child._opened = self.scheme, self._query, self._opened
        child.path = self._full(name)
        return child

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"Folder({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def pyarrow_filesystem(self) -> tuple[FileSystem, str]:
        """(file system, path within it), as Ray Data's and Ray Train's arguments take them."""
        return self._drive.filesystem(), self.path

    @property
    def _drive(self) -> Drive:
        if self._opened is None:
            self._opened = LocalDrive() if self.is_local else S3Drive(self._query)
        return self._opened

    def _full(self, name: str) -> str:
        if leads_out(name):
            raise ValueError(f"{name!r} leads out of {self.address}")
        return "/".join((self.path, *PurePosixPath(name).parts))

    # --- single files ---------------------------------------------------------------------------------------

    def read_bytes(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """All of it, or its bytes from `start` to before `end`. Raises FileNotFoundError."""
        return self._drive.read(self._full(name), start, end)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Creates or replaces the file; a reader sees the old content or the new, never a part."""
        self._drive.write(self._full(name), data)

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def open(self, name: str) -> NativeFile:
        """For reading at any place, as pyarrow's readers do. Raises FileNotFoundError."""
        return self._drive.filesystem().open_input_file(self._full(name))

    def signed_url(self, name: str, seconds: int) -> str:
        """An address at which anybody can read the file for `seconds`, 604800 at most. Whether it exists is not asked.

        Raises UserError on a disk: what lies there has no address on the web.
        """
        drive = self._drive
        if not isinstance(drive, S3Drive):
            raise UserError(f"{self.address} has no addresses on the web: give a store such as s3://bucket/prefix.")
        return drive.signed_url(self._full(name), seconds)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or a folder with something in it; without a name: this folder."""
        return self._drive.exists(self._full(name))

    # --- many files -----------------------------------------------------------------------------------------

    def list(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; none where the folder does not exist."""
        return sorted(self._drive.names(self.path))

    def files(self) -> list[str]:
        """Relative names of all files below, sorted."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of all files below, by relative name."""
        return self._drive.sizes(self.path)

    def fingerprint(self, ends: str = "") -> str:
        """Of the files below whose names end so: names, sizes, and the last mebibyte of each, in hex.

        The ends of weight files hold trained weights and those of Parquet files their statistics, so that what was
        made anew at the same address is told from what was there before.
        """
        digest = hashlib.sha256()
        for name, size in sorted(self.sizes().items()):
            if name.endswith(ends):
                digest.update(f"{name}\0{size}\0".encode())
                digest.update(self._drive.read(self._full(name), max(0, size - TAIL)))
        return digest.hexdigest()

    def delete(self, name: str = "") -> None:
        """Removes a file or a whole folder; what does not exist is fine."""
        self._drive.delete(self._full(name))

    def upload(self, source: str | os.PathLike[str], name: str = "") -> None:
        """Copies a local file or tree to `name`, replacing files of the same name."""
        root, path = Path(source), self._full(name)
        if root.is_file():
            self._drive.put(root, path)
            return
        if not root.is_dir():
            raise FileNotFoundError(f"there is no {root} to copy to {path}")
        for file in sorted(file for file in root.rglob("*") if file.is_file()):
            self._drive.put(file, f"{path}/{file.relative_to(root).as_posix()}")

    def download(self, target: str | os.PathLike[str], name: str = "") -> Path:
        """Copies a file or tree to the local path `target` and returns it. Raises FileNotFoundError."""
        path, root = self._full(name), Path(target)
        if not self._drive.exists(path):
            raise FileNotFoundError(f"there is no {path} in {self.address}")
        found = self._drive.sizes(path)
        if "" not in found:
            root.mkdir(parents=True, exist_ok=True)
        for file in found:
            local = root / file if file else root
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(f"{local.name}.part-{os.getpid()}")
            try:
                self._drive.get(f"{path}/{file}" if file else path, part)
            except BaseException:
                part.unlink(missing_ok=True)  # a disk that is full needs the room
                raise
            os.replace(part, local)
        return root

    def ensure_writable(self) -> None:
        """Raises UserError, with the reason, where this run could not leave its results."""
        probe = f".writable-{os.getpid()}"
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{self.address} cannot be written to: it is a file, or lies below one.") from error
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.address} cannot be written to: {reason_of(error)}.") from error


def leads_out(name: str) -> bool:
    """Whether a name of something in a folder is of something outside."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def check_inside(what: str, name: str) -> None:
    """Raise ValueError, in a configuration's words, unless `name` is of something in a run's folder."""
    if not name or "://" in name or leads_out(name):
        raise ValueError(f"{what} is {name!r} and must be a folder within the run's, as in {what}=costly")
