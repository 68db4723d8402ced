"""What `cluster.storage.Folder` does on a disk and on S3, each in that place's own way.

Paths here are whole: an absolute path, or bucket/key. Always true on both: a file appears whole or not at all.
"""

from __future__ import annotations

import mimetypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

from cluster.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

P = ParamSpec("P")
T = TypeVar("T")
CONNECT_S, READ_S = 10.0, 60.0  # for one request to S3; it is tried again ATTEMPTS times, ever more slowly
ATTEMPTS = 5


class S3Failed(UserError, ConnectionError):
    """S3 cannot be reached, or does not understand what it is asked. An OSError, as every failure of a file is."""


class S3Forbidden(UserError, PermissionError):
    """These credentials may not do that."""


class Drive(Protocol):
    """A place for files. What is not there raises FileNotFoundError, what cannot be done another OSError."""

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` to before `end`, fewer where the file has fewer."""
        ...

    def write(self, path: str, data: bytes) -> None: ...
    def exists(self, path: str) -> bool: ...
    def names(self, path: str) -> list[str]:
        """Names directly inside, in no order; none where there is no such folder."""
        ...

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of all files below, by their names relative to `path`; `path` itself, by "", where it is a file."""
        ...

    def delete(self, path: str) -> None:
        """A file or a folder; what is not there is fine."""
        ...

    def put(self, source: Path, path: str) -> None:
        """Copy a local file here."""
        ...

    def get(self, path: str, target: Path) -> None:
        """Copy a file from here; `target` may be left in part when that fails."""
        ...

    def filesystem(self) -> FileSystem:
        """pyarrow's, for its readers and Ray's."""
        ...


class LocalDrive:
    """This machine's disks, and what is mounted on them."""

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        with open(path, "rb") as stream:
            stream.seek(start)
            return stream.read(-1 if end is None else end - start)

    def write(self, path: str, data: bytes) -> None:
        with _replacing(Path(path)) as part, part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def names(self, path: str) -> list[str]:
        return os.listdir(path) if os.path.isdir(path) else []

    def sizes(self, path: str) -> dict[str, int]:
        root = Path(path)
        if root.is_file():
            return {"": root.stat().st_size}
        found: dict[str, int] = {}
        for file in root.rglob("*"):
            with suppress(FileNotFoundError):  # gone since: a part that has become its file
                if file.is_file():
                    found[file.relative_to(root).as_posix()] = file.stat().st_size
        return found

    def delete(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def put(self, source: Path, path: str) -> None:
        with _replacing(Path(path)) as part:
            shutil.copyfile(source, part)

    def get(self, path: str, target: Path) -> None:
        shutil.copyfile(path, target)

    def filesystem(self) -> FileSystem:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new file beside `target` that takes its place when nothing was raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _as_os_error(call: Callable[P, T]) -> Callable[P, T]:
    """What botocore raises by itself, as what callers of a file expect, and as a sentence for who typed the address."""

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        try:
            return call(*args, **kwargs)
        except NoCredentialsError as error:
            raise UserError(
                "There are no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from error
        except BotoCoreError as error:
            told = " ".join(str(error).split()).rstrip(".")
            raise S3Failed(f"S3 failed: {told}; check the address, AWS_ENDPOINT_URL and the network.") from error
        except PermissionError as error:
            told = " ".join(str(error).split()).rstrip(".")
            raise S3Forbidden(f"S3 refuses access: {told}; check the bucket's name and the credentials.") from error

    return wrapped


class S3Drive:
    """S3 and what speaks like it, through s3fs: credentials by the usual AWS chain.

    `query` is that of an address: endpoint_override (host:port), scheme, region; what it leaves open is taken from
    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and AWS's own settings.
    """

    def __init__(self, query: str = "") -> None:
        import s3fs

        given = dict(parse_qsl(query))
        if unknown := given.keys() - {"endpoint_override", "scheme", "region"}:
            raise UserError(f"An s3:// address takes endpoint_override, scheme and region, not {min(unknown)}.")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if "endpoint_override" in given:
            endpoint = f"{given.get('scheme', 'https')}://{given['endpoint_override']}"
        if endpoint and not (urlsplit(endpoint).scheme in ("http", "https") and urlsplit(endpoint).netloc):
            raise UserError(f"The endpoint of S3 is {endpoint!r} and must be like http://host:port.")
        self._files: Any = s3fs.S3FileSystem(
            endpoint_url=endpoint,
            client_kwargs={"region_name": given["region"]} if "region" in given else {},
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "retries": {"mode": "standard", "max_attempts": ATTEMPTS},
            },
            use_listings_cache=False,  # others write here, too
        )

    @_as_os_error
    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        return self._files.cat_file(path, start=start or None, end=end)

    @_as_os_error
    def write(self, path: str, data: bytes) -> None:
        self._files.pipe_file(path, data)

    @_as_os_error
    def exists(self, path: str) -> bool:
        return self._files.exists(path)

    @_as_os_error
    def names(self, path: str) -> list[str]:
        try:
            return [found.rpartition("/")[2] for found in self._files.ls(path, detail=False)]
        except FileNotFoundError:
            return []

    @_as_os_error
    def sizes(self, path: str) -> dict[str, int]:
        found = self._files.find(path, detail=True)
        return {name[len(path) + 1 :]: info["size"] for name, info in found.items()}

    @_as_os_error
    def delete(self, path: str) -> None:
        if self._files.exists(path):
            self._files.rm(path, recursive=True)

    @_as_os_error
    def put(self, source: Path, path: str) -> None:
        self._files.put_file(str(source), path)  # in parts when large, which are given up when one fails

    @_as_os_error
    def get(self, path: str, target: Path) -> None:
        self._files.get_file(path, str(target))

    @_as_os_error
    def signed_url(self, path: str, seconds: int) -> str:
        """An address on the web for `seconds`; whether there is such a file is not asked."""
        # Signature version 4: botocore's own choice is version 2 in the older regions, which newer buckets refuse.
        options = {**self._files.storage_options}
        options["config_kwargs"] = {**options.get("config_kwargs", {}), "signature_version": "s3v4"}
        kind, _ = mimetypes.guess_type(path)  # files are stored without one, and some readers want to know
        told = {"ResponseContentType": kind} if kind else {}
        return type(self._files)(**options).sign(path, expiration=seconds, **told)

    @_as_os_error
    def filesystem(self) -> FileSystem:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._files))
