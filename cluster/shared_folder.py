"""Whether a local folder is the same place on every node: its path alone does not say so.

A mark is left in it. A process that does not read the same mark there looks at a disk of its own: what it writes would
be missing elsewhere, and what others wrote would be missing to it, and nothing would fail at once.
"""

from __future__ import annotations

import uuid
from typing import Any

from cluster.errors import UserError
from cluster.storage import Folder

MARK = ".seen-by-all-nodes"


class SharedFolder:
    """A folder that actors on other nodes are to see as this process does."""

    def __init__(self, folder: Folder, setting: str) -> None:
        """Leave the mark. `setting`: the key of the configuration that says where the folder is."""
        self._folder, self._setting, self._nonce = folder, setting, uuid.uuid4().hex
        folder.write_text(MARK, self._nonce)

    async def seen_by(self, actor: Any) -> None:
        """Raise `UserError` when the process of a Ray actor sees another folder. Waits until it has one."""
        node, found = await actor.__ray_call__.remote(_look, self._folder)
        if found != self._nonce:
            raise UserError(
                f"Node {node} does not see this run's folder {self._folder}: {self._setting} must be a folder that all"
                " nodes see under the same path, or s3://bucket/prefix."
            )

    def close(self) -> None:
        """Take the mark away."""
        self._folder.delete(MARK)


def _look(actor: Any, folder: Folder) -> tuple[str, str]:
    """The address of the actor's node, and what the mark says there; "" where there is none."""
    from ray.util import get_node_ip_address

    try:
        return get_node_ip_address(), folder.read_text(MARK)
    except OSError:
        return get_node_ip_address(), ""
