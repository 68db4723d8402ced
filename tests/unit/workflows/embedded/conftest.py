"""One small embedded world and its real engine, made once for all tests of the world."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from actors.model.images import BlobImages
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.settings import SearchSettings
from actors.search.sources import Endpoints
from cluster.blobs import BlobStore
from cluster.storage import Folder
from workflows.embedded.entities import World, WorldSettings, make_world
from workflows.embedded.search import EmbeddedGrounder, EmbeddedImageSearch, EmbeddedTextSearch, publish_web

TOP_K = 3  # the most that the pages are written for; conf/embedded.yaml asks for fewer


@dataclass
class Web:
    """The engine of a world. A gateway belongs to one event loop: each test takes a new one."""

    world: World
    text: EmbeddedTextSearch
    image: EmbeddedImageSearch
    images: BlobImages

    def gateway(self, settings: SearchSettings | None = None) -> Gateway:
        return Gateway(
            settings or SearchSettings(top_k=TOP_K),
            self.images,
            Endpoints(
                text=[Endpoint("text", self.text)],
                image=[Endpoint("image", self.image)],
                grounder=Endpoint("ground", EmbeddedGrounder()),
            ),
        )


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(WorldSettings(seed=3, head=6, tail_train=36, tail_test=24, homonyms=0.3))


@pytest.fixture(scope="session")
def web(world: World, tmp_path_factory: pytest.TempPathFactory) -> Web:
    folder = str(tmp_path_factory.mktemp("web"))
    publish_web(world, Folder(folder))
    images = BlobImages(BlobStore(tmp_path_factory.mktemp("blobs")))
    return Web(world, EmbeddedTextSearch(folder), EmbeddedImageSearch(folder), images)
