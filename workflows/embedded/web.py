"""The embedded web of a run, published once: what the search engine of the embedded world reads."""

from __future__ import annotations

import dataclasses
import json

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.embedded.entities import World, WorldSettings, make_world

MANIFEST = "world.json"  # written last: with it, the web is whole


def ensure_web(folder: Folder, settings: WorldSettings) -> World:
    """The world of `settings`, its web in `folder`; published unless it is there already.

    Raise `UserError` if another world lives there: everything else in the run was made in it.
    """
    world, wanted = make_world(settings), _plain(settings)
    try:
        found = folder.read_json(MANIFEST)
    except FileNotFoundError:
        found = None
    if found == wanted:
        return world
    if found is not None:
        differing = ", ".join(f"world.{name}" for name in wanted if found.get(name) != wanted[name])
        raise UserError(
            f"The run at {folder.address} was made in another world ({differing} differ): choose another run.name."
        )
    from workflows.embedded.search import publish_web

    publish_web(world, folder)
    folder.write_json(MANIFEST, wanted)
    return world


def _plain(settings: WorldSettings) -> dict[str, object]:
    """As JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))
