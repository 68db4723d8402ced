"""What was claimed of an endpoint's budgets, in a folder that outlives every broker.

    <folder>/<endpoint>/<writer>.json    {"day": {"label": "2026-11-21", "claimed": {requests, tokens, micro_usd}}, ...}

Each broker writes one file, its own, with what it claimed itself; what was spent is the sum over all files of a window.
So a broker that comes back and a shell command beside it never overwrite one another's spending, on any storage.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from actors.search.quota.budgets import WINDOWS, Spend
from cluster.storage import Folder

log = logging.getLogger(__name__)
Claims = dict[str, Any]


class Journal:
    """The journal of one endpoint, for one broker."""

    def __init__(self, folder: Folder, endpoint: str) -> None:
        self._folder, self._name = folder / endpoint, f"{uuid.uuid4().hex[:12]}.json"
        self._others: Claims | None = None  # as they were when this broker started

    def read(self) -> Claims | None:
        """The sum of all claims of the newest day and month; None where there are none. Files of past months go."""
        claims = [(name, found) for name in self._files() if (found := self._claims(name)) is not None]
        if not claims:
            return None
        newest = {window: max(found[window]["label"] for _, found in claims) for window in WINDOWS}
        for name, found in claims:
            if found["month"]["label"] < newest["month"]:
                self._folder.delete(name)
        self._others = {window: _summed(window, label, claims) for window, label in newest.items()}
        return self._others

    def write(self, claims: Claims) -> None:
        """Replace this broker's file: `claims` without what others had claimed before it."""
        own = {}
        for window, entry in claims.items():
            claimed = Spend(**entry["claimed"])
            others = self._others[window] if self._others else None
            if others and others["label"] == entry["label"]:
                claimed = claimed.minus(Spend(**others["claimed"]))
            own[window] = {"label": entry["label"], "claimed": asdict(claimed)}
        self._folder.write_json(self._name, own)

    def _files(self) -> Iterator[str]:
        if self._folder.exists():
            yield from (name for name in self._folder.files() if name.endswith(".json"))

    def _claims(self, name: str) -> Claims | None:
        """One broker's claims; None, and a warning, for a file that is none."""
        try:
            found = self._folder.read_json(name)
            for window in WINDOWS:
                Spend(**found[window]["claimed"])
                str(found[window]["label"])
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            log.warning(
                "the quota journal %s/%s cannot be read, its spending is not counted: %s", self._folder, name, error
            )
            return None
        return found


def _summed(window: str, label: str, claims: list[tuple[str, Claims]]) -> Claims:
    total = Spend()
    for _, found in claims:
        if found[window]["label"] == label:
            total = total.plus(Spend(**found[window]["claimed"]))
    return {"label": label, "claimed": asdict(total)}
