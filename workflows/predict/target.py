"""Where the answers go: one file, or a folder of files, with the parts beside it while they are made.

Always true: what lies at the output is whole, and says itself what it follows from; the parts go after it is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.identity import changes
from workflows.predict.parts import IDENTITY, Parts, write_file
from workflows.predict.source import SUFFIX, Source, parent_of

KEY = b"mmsearch.predict"  # of what the answers follow from, in the schema of a file
COMPLETE = "_complete.json"  # the same, in a folder, written last; readers of Parquet skip names with an underscore


@dataclass(frozen=True)
class Target:
    """`name` is a file's, or a folder's, in `folder`."""

    folder: Folder
    name: str

    @classmethod
    def at(cls, address: str) -> Target:
        """Raise `UserError` for a place that answers cannot have."""
        place = Folder(address)
        return cls(parent_of(place), place.name)

    @property
    def is_file(self) -> bool:
        return self.name.endswith(SUFFIX)

    @property
    def address(self) -> str:
        return (self.folder / self.name).address

    @property
    def parts(self) -> Folder:
        return self.folder / f"{self.name}.parts"

    def check(self, source: Source) -> None:
        """Raise `UserError` where answers would be taken for questions, or cannot be written."""
        mine = self.folder / self.name
        among = any(source.folder / file.name == mine for file in source.files)
        inside = mine.scheme == source.folder.scheme and f"{mine.path}/".startswith(f"{source.folder.path}/")
        if among or (inside and source.whole_folder):
            raise UserError(f"--out {self.address} is where the questions are: give the answers another place.")
        self.folder.ensure_writable()

    def begin(self, identity: Mapping[str, Any], again: bool) -> bool:
        """Make the parts ready for rows of `identity`; False when all is done already.

        `again`: throw away what was made before. Raise `UserError` where that is needed and was not asked for.
        """
        there, begun = self._complete(), self._begun()
        if there == identity and not again:
            self.parts.delete()
            return False
        before = begun or there
        if before is not None and before != identity and not again:
            raise UserError(
                f"{self.parts if begun else self.address} has answers of other settings ({changes(before, identity)}):"
                " give the same again to go on, another --out, or --again to begin anew."
            )
        if again:
            self.parts.delete()
        self.parts.write_json(IDENTITY, dict(identity))
        return True

    def write(self, parts: Parts, identity: Mapping[str, Any], rows_per_file: int) -> None:
        """The output, made of the parts; then the parts go."""
        about = {KEY: json.dumps(identity, sort_keys=True).encode()}
        if self.is_file:
            write_file(parts.tables(), self.folder, self.name, about)
        else:
            place = self.folder / self.name
            for name in [COMPLETE, *place.list()]:  # files of before must not be among the new ones
                if name == COMPLETE or (name.startswith("part-") and name.endswith(SUFFIX)):
                    place.delete(name)
            for number, first in enumerate(range(0, len(parts.rows), rows_per_file)):
                tables = parts.tables(first, first + rows_per_file)
                write_file(tables, place, f"part-{number:05d}{SUFFIX}", about)
            place.write_json(COMPLETE, dict(identity))
        self.parts.delete()

    def _begun(self) -> dict[str, Any] | None:
        try:
            return self.parts.read_json(IDENTITY)
        except FileNotFoundError:
            return None

    def _complete(self) -> dict[str, Any] | None:
        """What the answers at the output follow from; None for none. Raise `UserError` for something else there."""
        if not self.folder.exists(self.name):
            return None
        foreign = UserError(f"{self.address} is there already, and not from `mmsearch predict`: give another --out.")
        place = self.folder / self.name
        if not self.is_file:
            if place.exists(COMPLETE):
                return place.read_json(COMPLETE)
            if self._begun() is not None or not place.list():
                return None  # its files were being written
            raise foreign
        try:
            with self.folder.open(self.name) as stream:
                about = (pq.read_schema(stream).metadata or {}).get(KEY)
        except (OSError, pa.ArrowException):
            raise foreign from None
        if about is None:
            raise foreign
        return json.loads(about)
