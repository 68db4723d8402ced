"""A run has one world."""

from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.embedded.entities import WorldSettings
from workflows.embedded.search import PAGES
from workflows.embedded.web import MANIFEST, ensure_web

SMALL = WorldSettings(head=2, tail_train=4, tail_test=4)


def test_the_web_is_published_once(tmp_path):
    folder = Folder(tmp_path)
    world = ensure_web(folder, SMALL)
    before = (tmp_path / PAGES).stat().st_mtime_ns
    assert ensure_web(folder, SMALL) == world
    assert (tmp_path / PAGES).stat().st_mtime_ns == before


def test_a_web_that_was_not_finished_is_published_again(tmp_path):
    folder = Folder(tmp_path)
    ensure_web(folder, SMALL)
    folder.delete(MANIFEST)
    folder.write_bytes(PAGES, b"torn")
    ensure_web(folder, SMALL)
    assert folder.read_bytes(PAGES)[:4] == b"PAR1"


def test_another_world_in_the_same_run_is_refused_with_the_key_that_differs(tmp_path):
    ensure_web(Folder(tmp_path), SMALL)
    with pytest.raises(UserError, match=r"world\.seed differ"):
        ensure_web(Folder(tmp_path), replace(SMALL, seed=5))
