import errno

import pytest

from actors.agent.seams import ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef, Outcome
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.seams import ErrorKind, ImageHit, ProviderError, ScoredBox
from actors.search.sources import Endpoints
from cluster.drives import S3Failed
from tests.unit.actors.search.gateways import FAR, SETTINGS, Answers, Counting, Time, image_gateway, look, text
from tests.unit.actors.search.search_world import SIZE, Colours, FolderImages, Sentences, Squares, scene


@pytest.fixture
def images(tmp_path):
    return FolderImages(str(tmp_path))


@pytest.fixture
def time():
    return Time()


# --- pictures -----------------------------------------------------------------------------------------------


async def test_the_whole_image_is_searched_when_nothing_is_named(images, time):
    picture = images.put(scene("blue"))
    result = await image_gateway(images, time, Squares()).call(look(picture), deadline=FAR)
    assert result.evidence[0].title == "A blue square"
    assert result.crop_box is None
    thumbnail = result.evidence[0].thumbnail
    assert thumbnail is not None
    assert images.get(thumbnail) == scene("blue")


async def test_an_expression_searches_the_crop_that_the_grounder_finds(images, time):
    picture = images.put(scene("red", "green", "blue"))
    provider = Counting(Colours())
    gateway = image_gateway(images, time, Squares(), provider)
    result = await gateway.call(look(picture, "the green square"), deadline=FAR)
    assert result.evidence[0].title == "A green square"
    assert result.crop_box == (32, 34, 60, 62)  # the square and 5 % of 24 pixels around it
    assert {e.crop_box for e in result.evidence} == {result.crop_box}
    assert len(provider.pictures[0]) < len(scene("red", "green", "blue"))
    assert result.cost_usd == pytest.approx(0.012)
    assert gateway.ledger.totals.by_tool == {"ground": 1, "image_search": 1}


async def test_where_the_search_fails_finding_the_crop_has_cost_something_all_the_same(images, time):
    picture = images.put(scene("red", "green", "blue"))
    provider = Answers(ProviderError(ErrorKind.SCHEMA, "unreadable"))
    gateway = image_gateway(images, time, Squares(), provider)
    result = await gateway.call(look(picture, "the green square"), deadline=FAR)
    assert (result.outcome, result.cost_usd) == (Outcome.INFRA_ERROR, 0.002)


async def test_an_expression_that_finds_nothing_searches_the_whole_image_and_says_so(images, time):
    picture = images.put(scene("red"))
    result = await image_gateway(images, time, Squares()).call(look(picture, "the cat"), deadline=FAR)
    assert result.outcome is Outcome.OK
    assert result.crop_box is None
    assert "whole image" in result.message


async def test_a_detection_too_small_to_crop_counts_as_none(images, time):
    class Speck:
        async def ground(self, image, expression):
            return [ScoredBox((5, 5, 7, 7), 0.99)]

    result = await image_gateway(images, time, Speck()).call(look(images.put(scene("red")), "dot"), deadline=FAR)
    assert result.crop_box is None
    assert "whole image" in result.message


async def test_without_a_grounder_the_whole_image_is_searched_and_that_is_said(images, time):
    result = await image_gateway(images, time).call(look(images.put(scene("red")), "red"), deadline=FAR)
    assert result.outcome is Outcome.OK
    assert "whole image" in result.message


async def test_a_grounder_that_is_down_is_not_mistaken_for_nothing_found(images, time):
    class Down:
        async def ground(self, image, expression):
            raise ProviderError(ErrorKind.TRANSIENT, "503")

    gateway = image_gateway(images, time, Down())
    result = await gateway.call(look(images.put(scene("red")), "red"), deadline=FAR)
    assert result.outcome is Outcome.INFRA_ERROR
    assert gateway.ledger.totals.by_outcome == {"infra_error": 2}


async def test_a_box_in_thousandths_is_cropped_without_a_grounder(images, time):
    picture = images.put(scene("red", "green"))
    result = await image_gateway(images, time).call(look(picture, box=(0, 0, 330, 1000)), deadline=FAR)
    assert result.evidence[0].title == "A red square"
    assert result.crop_box == (0, 0, 37, SIZE)


@pytest.mark.parametrize("box", [(0, 0, 10, 500), (500, 0, 500, 900), (0, 0, 1001, 5), (9, 9, 3, 3)])
async def test_a_box_that_is_empty_outside_or_too_small_is_the_policys_error(images, time, box):
    provider = Counting(Colours())
    gateway = image_gateway(images, time, provider=provider)
    result = await gateway.call(look(images.put(scene("red")), box=box), deadline=FAR)
    assert result.outcome is Outcome.POLICY_ERROR
    assert "box" in result.message
    assert provider.pictures == []


async def test_without_an_image_the_policy_is_told_and_text_tools_still_work(images, time):
    gateway = Gateway(SETTINGS, images, Endpoints([Endpoint("s", Sentences())], [Endpoint("c", Colours())]), clock=time)
    result = await gateway.call(look(None), deadline=FAR)
    assert result.outcome is Outcome.POLICY_ERROR
    assert "no image 1" in result.message
    assert (await gateway.call(text(), deadline=FAR)).outcome is Outcome.OK


async def test_a_tool_that_nobody_provides_is_the_policys_error_in_words(images, time):
    gateway = Gateway(SETTINGS, images, Endpoints(), clock=time)
    assert (await gateway.call(text(), deadline=FAR)).outcome is Outcome.POLICY_ERROR
    result = await gateway.call(look(images.put(scene("red"))), deadline=FAR)
    assert (result.outcome, result.message) == (Outcome.POLICY_ERROR, "image search is not available")


@pytest.mark.parametrize("expression", ["", "red"])
@pytest.mark.parametrize("data", [b"no picture at all", scene("red")[:120], b""])
async def test_a_torn_picture_is_a_fault_of_the_data(images, time, expression, data):
    torn = images.put_unchecked(data, SIZE, SIZE)
    provider = Counting(Colours())
    gateway = image_gateway(images, time, Squares(), provider)
    with pytest.raises(ImageRefused, match="cannot be searched"):
        await gateway.call(look(torn, expression), deadline=FAR)
    with pytest.raises(ImageRefused):
        await gateway.call(look(torn, box=(0, 0, 500, 500)), deadline=FAR)
    assert provider.pictures == []


async def test_a_picture_that_no_store_has_is_a_fault_of_the_data(images, time):
    with pytest.raises(ImageMissing):
        await image_gateway(images, time).call(look(ImageRef("0" * 64, 9, 9)), deadline=FAR)


class Unreachable(FolderImages):
    def get(self, ref):
        raise S3Failed("S3 failed: no route; check the network.")


@pytest.mark.parametrize("asked", [{}, {"expression": "red"}, {"box": (0, 0, 500, 500)}])
async def test_storage_that_fails_is_the_world_s_fault_and_no_provider_is_asked(images, time, asked):
    provider = Counting(Colours())
    gateway = image_gateway(Unreachable(images.folder), time, Squares(), provider)
    result = await gateway.call(look(images.put(scene("red")), **asked), deadline=FAR)
    assert result.outcome is Outcome.INFRA_ERROR
    assert result.message.startswith("image search failed (storage): S3 failed: no route")
    assert gateway.ledger.totals.by_outcome == {"infra_error": 1}
    assert provider.pictures == []


async def test_a_full_disk_does_not_turn_a_thumbnail_into_a_fault_of_the_data(images, time):
    class Full(FolderImages):
        def put(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    result = await image_gateway(Full(images.folder), time).call(look(images.put(scene("red"))), deadline=FAR)
    assert result.outcome is Outcome.INFRA_ERROR
    assert "No space left on device" in result.message


async def test_the_same_crop_reached_by_other_words_costs_one_search(images, time):
    picture = images.put(scene("red", "green"))
    provider, grounder = Counting(Colours()), Counting(Squares())
    gateway = image_gateway(images, time, grounder, provider)
    first = await gateway.call(look(picture, "green"), deadline=FAR)
    second = await gateway.call(look(picture, "the green square"), deadline=FAR)
    third = await gateway.call(look(picture, "the  GREEN square"), deadline=FAR)
    assert len(provider.pictures) == 1
    assert len(grounder.pictures) == 2
    assert first.evidence == second.evidence == third.evidence
    assert (second.cached, third.cached) == (False, True)
    assert second.cost_usd == pytest.approx(0.002)


async def test_a_thumbnail_that_is_no_picture_is_left_out_and_the_hit_stays(images, time):
    class BadThumbnails:
        async def search(self, image):
            return [ImageHit("a", "", "x", thumbnail=b"html"), ImageHit("b", "", "y", thumbnail=scene("red"))]

    result = await image_gateway(images, time, provider=BadThumbnails()).call(
        look(images.put(scene("red"))), deadline=FAR
    )
    assert [e.thumbnail is not None for e in result.evidence] == [False, True]
