"""Where a row's picture may come from, and where not."""

import pytest

from actors.agent.seams import ImageMissing
from actors.model.images import MAX_BYTES
from actors.search.fetch.reader import DirectReader
from actors.search.seams import ErrorKind, ProviderError
from cluster.storage import Folder
from tests.unit.workflows.predict.asked import picture
from workflows.predict.pictures import BadPicture, PictureReader, PictureUnread


class Web:
    def __init__(self, error=None):
        self.error, self.asked = error, []

    async def fetch_image(self, url):
        self.asked.append(url)
        if self.error is not None:
            raise ProviderError(self.error, "no")
        return picture("green")


class Kept:
    def __init__(self, data=None, error=None):
        self.data, self.error = data, error

    def get(self, ref):
        if self.error is not None:
            raise self.error
        return self.data


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture("blue"))
    return tmp_path / "data"


async def read(root, web=None, kept=None, **fields):
    row = {"bytes": None, "where": None, "sha256": None, "width": None, "height": None} | fields
    return await PictureReader(Folder(root), kept or Kept(), web or Web()).read(row)


async def test_bytes_are_what_they_are_and_paths_lead_into_the_folder(root):
    assert await read(root, bytes=b"x") == b"x"
    assert await read(root, where="sub/a.png") == picture()
    assert await read(root, where=f"{root}/sub/a.png") == picture()


@pytest.mark.parametrize(
    "where",
    ["../secret.png", "sub/../../secret.png", "/etc/hostname", "file:///etc/hostname", "s3://other/a.png", "a\0b"],
)
async def test_paths_that_lead_elsewhere_are_refused(root, where):
    with pytest.raises(BadPicture, match="where paths of pictures must lead"):
        await read(root, where=where)
    with pytest.raises(BadPicture):
        await read(root, where=f"{root}/{where}")


async def test_what_is_not_there_is_the_rows_fault_and_what_is_too_long_is_cut_for_the_store_to_refuse(root):
    for where in ("sub/none.png", "sub", "sub/a.png/b"):
        with pytest.raises(BadPicture, match="no picture at"):
            await read(root, where=where)
    with (root / "huge.png").open("wb") as stream:
        stream.truncate(MAX_BYTES + 100)
    assert len(await read(root, where="huge.png")) == MAX_BYTES + 1


async def test_addresses_of_the_web_are_fetched_and_failures_that_may_pass_are_told_from_others(root):
    web = Web()
    assert await read(root, web, where="HTTPS://a.example/x.png") == picture("green")
    assert web.asked == ["HTTPS://a.example/x.png"]
    for kind in (ErrorKind.TRANSIENT, ErrorKind.RATE):
        with pytest.raises(PictureUnread):
            await read(root, Web(kind), where="http://a.example/x.png")
    for kind in (ErrorKind.BAD_REQUEST, ErrorKind.SCHEMA):
        with pytest.raises(BadPicture):
            await read(root, Web(kind), where="http://a.example/x.png")


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.png", "http://169.254.169.254/latest", "http://[::1]/x.png"])
async def test_addresses_of_this_machine_are_not_fetched(root, url):
    web = DirectReader()
    with pytest.raises(BadPicture, match="could not be fetched"):
        await read(root, web, where=url)
    await web.close()


async def test_pictures_of_the_run_are_found_by_content(root):
    ref = {"sha256": "a" * 64, "width": 1, "height": 1}
    assert await read(root, kept=Kept(b"x"), **ref) == b"x"
    with pytest.raises(BadPicture, match="do not hold it"):
        await read(root, kept=Kept(error=ImageMissing("image aaa cannot be found")), **ref)
    with pytest.raises(BadPicture):
        await read(root, kept=Kept(error=ValueError("no sha256")), **ref)
    with pytest.raises(PictureUnread):
        await read(root, kept=Kept(error=OSError("storage is down")), **ref)
