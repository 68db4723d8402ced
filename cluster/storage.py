"""One door to files: a `Folder` is a local directory or an `s3://bucket/prefix`, and the same calls work on
both.

Credentials come by the usual AWS chain; AWS_ENDPOINT_URL (or `?endpoint_override=host:port&scheme=http` in
the address) points at MinIO and the like. Always true: a file that can be read is whole. Locally it appears
by renaming, on S3 by the completion of the upload. A tree that is copied has no such promise: write the
file that declares it complete last.

A Folder holds an address and opens its file system where it is used, so it can be pickled to any process.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_COPY_BYTES = 8 << 20


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
        self._opened: FileSystem | None = None

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
        if self._opened is None:
            from pyarrow import fs

            if self.is_local:
                self._opened = fs.LocalFileSystem()
            else:
                self._opened, _ = fs.FileSystem.from_uri(self.address)
        return self._opened, self.path

    def _full(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts:
            raise ValueError(f"{name!r} leads out of {self.address}")
        return "/".join((self.path, *parts))

    # --- single files ---------------------------------------------------------------------------------------

    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        if self.is_local:
            return Path(self._full(name)).read_bytes()
        files, _ = self.pyarrow_filesystem()
        with files.open_input_file(self._full(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Creates or replaces the file; a reader sees the old content or the new, never a part."""
        path = self._full(name)
        if not self.is_local:
            files, _ = self.pyarrow_filesystem()
            with files.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as part:
            try:
                part.write(data)
                part.flush()
                os.fsync(part.fileno())
                os.chmod(part.name, 0o666 & ~_umask())
                os.replace(part.name, target)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or a folder with something in it; without a name: this folder."""
        from pyarrow.fs import FileType

        files, _ = self.pyarrow_filesystem()
        return files.get_file_info(self._full(name)).type != FileType.NotFound

    # --- many files -----------------------------------------------------------------------------------------

    def list(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; none where the folder does not exist."""
        return sorted(PurePosixPath(info.path).name for info in self._infos(recursive=False))

    def files(self) -> list[str]:
        """Relative names of all files below, sorted."""
        from pyarrow.fs import FileType

        infos = self._infos(recursive=True)
        return sorted(info.path[len(self.path) + 1 :] for info in infos if info.type == FileType.File)

    def _infos(self, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        files, path = self.pyarrow_filesystem()
        return files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))

    def delete(self, name: str = "") -> None:
        """Removes a file or a whole folder; what does not exist is fine."""
        from pyarrow.fs import FileType

        files, _ = self.pyarrow_filesystem()
        path = self._full(name)
        kind = files.get_file_info(path).type
        if kind == FileType.Directory:
            files.delete_dir(path)
        elif kind != FileType.NotFound:
            files.delete_file(path)

    def upload(self, source: str | os.PathLike[str], name: str = "") -> None:
        """Copies a local file or tree to `name`, replacing files of the same name."""
        root = Path(source)
        target = self / name if name else self
        if root.is_file():
            parent, _, last = target.path.rpartition("/")
            target._copy_in(root, f"{parent}/{last}")
            return
        if not root.is_dir():
            raise FileNotFoundError(f"there is no {root} to copy to {target}")
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            target._copy_in(file, target._full(file.relative_to(root).as_posix()))

    def _copy_in(self, file: Path, path: str) -> None:
        if not self.is_local:
            files, _ = self.pyarrow_filesystem()
            with file.open("rb") as source, files.open_output_stream(path) as stream:
                shutil.copyfileobj(source, stream, _COPY_BYTES)
            return
        part = Path(f"{path}.part-{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def download(self, target: str | os.PathLike[str], name: str = "") -> Path:
        """Copies a file or tree to the local path `target` and returns it. Raises FileNotFoundError."""
        from pyarrow.fs import FileType

        files, _ = self.pyarrow_filesystem()
        path, root = self._full(name), Path(target)
        kind = files.get_file_info(path).type
        if kind == FileType.NotFound:
            raise FileNotFoundError(f"there is no {path} in {self.address}")
        if kind == FileType.File:
            wanted = [(path, root)]
        else:
            folder = self / name if name else self
            wanted = [(folder._full(file), root / file) for file in folder.files()]
            root.mkdir(parents=True, exist_ok=True)
        for remote, local in wanted:
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(f"{local.name}.part-{os.getpid()}")
            with files.open_input_stream(remote) as stream, part.open("wb") as sink:
                shutil.copyfileobj(stream, sink, _COPY_BYTES)
            os.replace(part, local)
        return root

    def ensure_writable(self) -> None:
        """Raises UserError, with the reason, where this run could not leave its results."""
        probe = f".writable-{os.getpid()}"
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.address} cannot be written to: {reason}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
