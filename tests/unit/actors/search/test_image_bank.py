"""Episode, gateway and provider together: which pixels leave when the model names a picture and a part of it, what is
recorded of that, and what of it the model is shown."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from actors.agent.episode import Limits
from actors.agent.trajectory import Ending, Failure, Outcome, Question, SegmentKind, Tool, ToolRequest
from actors.model.images import BlobImages
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.seams import ImageHit
from actors.search.settings import RegionSettings, SearchSettings
from actors.search.sources import Endpoints
from actors.search.store.settings import CassetteSettings, Mode
from cluster.blobs import BlobStore
from tests.unit.actors.agent.stage import IMAGE_TOKENS, WHOLE, Letters, Script, play, say
from tests.unit.actors.search.search_world import SIZE, FolderImages, Squares, scene

FAR = 1e9
SETTINGS = SearchSettings(top_k=3, region=RegionSettings(min_side=8))
SCENE, THUMBNAIL = scene("red", "green"), scene("green", "blue")
BLUE = (32, 34, 60, 62)  # pixels of the blue square of THUMBNAIL, with 5 % of its 24 around it
GREEN = (32, 34, 60, 62)  # of the green square of SCENE
GREEN_TOLD = "333,354,625,646"  # the same in thousandths of 96 pixels


class Lens:
    """An image search that finds the same pages for everything, and keeps what it was sent."""

    def __init__(self, hits: int = 1) -> None:
        self.hits, self.pictures = hits, []

    async def search(self, image):
        self.pictures.append(image.image)
        return [ImageHit(f"page {i}", f"https://e.example/{i}", "", thumbnail=THUMBNAIL) for i in range(self.hits)]


class Counted(Squares):
    def __init__(self) -> None:
        self.asked = 0

    async def ground(self, image, expression):
        self.asked += 1
        return await super().ground(image, expression)


class NoWorld:
    async def search(self, query):
        raise AssertionError("the world was asked")

    async def ground(self, image, expression):
        raise AssertionError("the world was asked")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return FolderImages(str(folder))


def gateway(images, lens, settings=SETTINGS, grounder=None):
    return Gateway(
        settings,
        images,
        Endpoints(image=[Endpoint("lens", lens, 0.01)], grounder=Endpoint("squares", grounder or Squares())),
        clock=lambda: 0.0,
        wall=lambda: 5.0,
    )


def look(body: str = "", **attributes: object) -> str:
    told = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<reason>r</reason><img_search{told}>{body}</img_search>"


async def played(images, lens, *lines, preset="extended", gate=None, **more):
    question = Question("q", "who founded it?", (images.put(SCENE),), ("ilse tarn",))
    gate = gate or gateway(images, lens)
    return await play(Script(*lines, say()), gate, preset=preset, question=question, **more)


def pixels(data: bytes, box=None) -> tuple[tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as picture:
        part = (picture.crop(box) if box else picture).convert("RGB")
        return part.size, part.tobytes()


def shown(trajectory) -> list:
    """The pictures of an episode as their numbers count them."""
    return [placed.ref for segment in trajectory.segments for placed in segment.images]


def observations(trajectory) -> list[str]:
    return [segment.text.strip() for segment in trajectory.segments if segment.kind is SegmentKind.OBSERVATION]


# --- any picture of the episode, and any part of it ---------------------------------------------------------


async def test_a_part_of_a_thumbnail_is_found_by_words_and_its_pixels_are_sent(images):
    lens = Lens()
    it = await played(images, lens, WHOLE, look("the blue square", image=2))
    assert lens.pictures[0] == SCENE
    assert pixels(lens.pictures[1]) == pixels(THUMBNAIL, BLUE)
    whole, part = it.tool_calls
    assert (whole.request.image, whole.request.image_number) == (shown(it)[0], 1)
    assert (part.request.image, part.request.image_number) == (shown(it)[1], 2)
    assert images.get(shown(it)[1]) == THUMBNAIL
    assert [(e.turn, e.image_number, e.crop_box) for e in it.evidence] == [(1, 1, None), (2, 2, BLUE)]
    assert part.result.crop_box == BLUE


async def test_a_part_of_a_thumbnail_is_named_by_a_box_and_its_pixels_are_sent(images):
    lens = Lens()
    it = await played(images, lens, WHOLE, look(image=2, box="0,250,500,750"))
    box = (0, 21, 51, 75)  # 0, 24, 48, 72 and 5 % of 48 around it, as far as the picture goes
    assert pixels(lens.pictures[1]) == pixels(THUMBNAIL, box)
    assert [(e.image_number, e.crop_box) for e in it.evidence] == [(1, None), (2, box)]
    assert it.tool_calls[1].request.box == (0, 250, 500, 750)


async def test_words_that_are_not_in_a_thumbnail_send_all_of_it_and_that_is_recorded(images):
    lens = Lens()
    it = await played(images, lens, WHOLE, look("the red square", image=2))
    assert lens.pictures[1] == THUMBNAIL  # red is in image 1 alone
    assert [(e.image_number, e.crop_box) for e in it.evidence] == [(1, None), (2, None)]
    assert it.tool_calls[1].result.message == "no 'the red square' was found in the image: the whole image was searched"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (look("the blue square", image=3), "there is no image 3"),
        (look(image=3, box="0,0,500,500"), "there is no image 3"),
        (look(image=2, box="0,0,10,500"), "box (0, 0, 10, 500) is too small to be searched"),
        (look(image=2, box="0,0,500,1001"), "box '0,0,500,1001' is empty or outside 0..1000"),
        (look(image=2, box="500,0,500,500"), "box '500,0,500,500' is empty or outside 0..1000"),
    ],
)
async def test_what_cannot_be_cut_out_is_told_to_the_model_and_sent_to_nobody(images, line, problem):
    lens = Lens()
    it = await played(images, lens, WHOLE, line)
    assert lens.pictures == [SCENE]
    assert observations(it)[1] == f"<information>error: {problem}</information>"
    assert (it.ending, it.format_ok, it.searches) == (Ending.ANSWERED, False, 1)


async def test_evidence_of_a_text_search_is_of_no_picture(images):
    gate = gateway(images, Lens())
    result = await gate.call(ToolRequest(Tool.IMAGE_SEARCH, image=images.put(SCENE), image_number=4), deadline=FAR)
    assert [item.image_number for item in result.evidence] == [4]
    again = await gate.call(ToolRequest(Tool.IMAGE_SEARCH, image=images.put(SCENE), image_number=2), deadline=FAR)
    assert again.cached
    assert [item.image_number for item in again.evidence] == [2]  # of the caller, not of who asked first


# --- crops as pictures --------------------------------------------------------------------------------------


async def test_what_was_cut_out_is_the_first_picture_of_the_result_and_is_what_was_sent(images):
    lens = Lens()
    it = await played(images, lens, look("the green square"), preset="extended+crops")
    assert observations(it)[0] == (
        f"<information>Image 2: <image> cut from image 1, box {GREEN_TOLD}\n[1] page 0: Image 3: <image></information>"
    )
    _, crop, thumbnail = shown(it)
    assert images.get(crop) == lens.pictures[0]
    assert (crop.width, crop.height) == (28, 28)
    assert pixels(images.get(crop)) == pixels(SCENE, GREEN)
    assert it.tool_calls[0].result.crop == crop
    assert images.get(thumbnail) == THUMBNAIL


async def test_a_crop_can_be_searched_and_cut_again_by_its_number(images):
    lens = Lens()
    it = await played(
        images, lens, look("the green square"), look("<img>", image=2), look(image=2, box="0,0,500,500"),
        preset="extended+crops",
    )  # fmt: skip
    crop = images.get(shown(it)[1])
    assert len(lens.pictures) == 2  # the whole crop is the picture that was sent already
    assert it.tool_calls[1].result.cached
    assert pixels(lens.pictures[1]) == pixels(crop, (0, 0, 15, 15))
    assert "cut from image 2, box 0,0,536,536" in observations(it)[2]
    assert [(e.image_number, e.crop_box) for e in it.evidence] == [(1, GREEN), (2, None), (2, (0, 0, 15, 15))]


@pytest.mark.parametrize("line", [WHOLE, look("the cat"), look(box="0,0,1000,1000")])
async def test_where_the_whole_picture_was_searched_there_is_no_crop(images, line):
    it = await played(images, Lens(), line, preset="extended+crops")
    assert it.tool_calls[0].result.crop is None
    assert observations(it) == ["<information>[1] page 0: Image 2: <image></information>"]


async def test_a_crop_of_which_nothing_is_known_is_shown_all_the_same(images):
    it = await played(images, Lens(hits=0), look("the green square"), preset="compact+crops")
    assert it.tool_calls[0].result.outcome is Outcome.EMPTY
    assert observations(it) == [
        f"<information><image> cut from image 1, box {GREEN_TOLD}\nnothing was found</information>"
    ]


@pytest.mark.parametrize("preset", ["extended", "compact"])
async def test_without_the_setting_no_crop_is_kept_and_nothing_is_shown(images, tmp_path, preset):
    it = await played(images, Lens(), look("the green square"), preset=preset)
    assert not it.tool_calls[0].request.return_crop
    assert it.tool_calls[0].result.crop is None
    assert {path.read_bytes() for path in (tmp_path / "images").iterdir()} == {SCENE, THUMBNAIL}
    marks = {"extended": " Image 2: <image>", "compact": ""}
    assert observations(it) == [f"<information>[1] page 0:{marks[preset]}</information>"]


async def test_a_crop_that_no_store_takes_is_not_shown_and_spoils_nothing(tmp_path):
    images, lens, strip = BlobImages(BlobStore(tmp_path)), Lens(), io.BytesIO()
    Image.new("RGB", (8000, 60)).save(strip, format="PNG")
    request = ToolRequest(Tool.IMAGE_SEARCH, image=images.put(strip.getvalue()), box=(0, 0, 1000, 300))
    result = await gateway(images, lens).call(replace(request, return_crop=True), deadline=FAR)
    assert (result.outcome, result.crop) == (Outcome.OK, None)
    assert result.crop_box is not None
    assert len(lens.pictures) == 1


# --- bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "numbers"), [(1, []), (2, [2]), (3, [2, 3]), (9, [2, 3, 4])])
async def test_pictures_beyond_what_the_engine_takes_are_not_shown_and_the_hits_stay(images, most, numbers):
    it = await played(images, Lens(hits=2), look("the green square"), preset="extended+crops", max_images=most)
    told = observations(it)[0]
    assert [n for n in range(1, 6) if f"Image {n}: <image>" in told] == numbers
    assert len(shown(it)) == 1 + len(numbers)
    assert "[1] page 0" in told
    assert "[2] page 1" in told
    assert (2 in numbers) == (shown(it)[1:2] == [it.tool_calls[0].result.crop])


async def test_a_picture_that_was_not_shown_has_no_number(images):
    lens = Lens()
    it = await played(images, lens, WHOLE, look("<img>", image=2), max_images=1)
    assert it.problem == "there is no image 2"
    assert lens.pictures == [SCENE]


async def test_a_crop_takes_its_tokens_from_the_episode(images):
    line, told = look("the green square"), f"<image> cut from image 1, box {GREEN_TOLD}\n"
    without = await played(images, Lens(), line, preset="compact")
    with_crop = await played(images, Lens(), line, preset="compact+crops")
    more = len(told) - len("<image>") + IMAGE_TOKENS
    assert with_crop.expanded_length == without.expanded_length + more
    exactly = Limits(max_total_tokens=without.expanded_length)
    assert (await played(images, Lens(), line, preset="compact", limits=exactly)).ending is Ending.ANSWERED
    full = await played(images, Lens(), line, preset="compact+crops", limits=exactly)
    assert (full.ending, full.failure) == (Ending.OUT_OF_TOKENS, Failure.POLICY)


# --- remembered and replayed --------------------------------------------------------------------------------


async def test_siblings_pay_for_one_search_whether_they_want_the_crop_or_not(images):
    lens, grounder = Lens(), Counted()
    gate = gateway(images, lens, grounder=grounder)
    first = await played(images, lens, look("the green square"), preset="extended", gate=gate)
    second = await played(images, lens, look("the green square"), preset="extended+crops", gate=gate)
    third = await played(images, lens, look("the green square"), preset="extended+crops", gate=gate)
    assert (len(lens.pictures), grounder.asked) == (1, 1)
    assert first.evidence == second.evidence == third.evidence
    assert shown(second) == shown(third)
    assert [call.result.cost_usd for call in second.tool_calls] == [0.0]


async def test_a_recorded_episode_shows_the_same_crops_in_replay_and_nobody_is_asked(tmp_path, images):
    tape = replace(SETTINGS, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path / "tape")))
    lines = look("the green square"), look("the blue square", image=3), look(image=4, box="0,0,500,500")
    lens = Lens()
    gate = gateway(images, lens, tape)
    before = await played(images, lens, *lines, preset="extended+crops", gate=gate)
    await gate.close()
    (tmp_path / "elsewhere").mkdir()
    elsewhere = FolderImages(str(tmp_path / "elsewhere"))
    tape = replace(tape, cassette=replace(tape.cassette, mode=Mode.REPLAY))
    gate = gateway(elsewhere, NoWorld(), tape, NoWorld())
    after = await played(elsewhere, lens, *lines, preset="extended+crops", gate=gate)
    assert after.failure is Failure.NONE
    assert [list(s.token_ids) for s in after.segments] == [list(s.token_ids) for s in before.segments]
    assert shown(after) == shown(before)
    assert len(shown(after)) == 7  # the question's, three crops and three thumbnails
    assert [elsewhere.get(ref) for ref in shown(after)] == [images.get(ref) for ref in shown(before)]
    assert all((ids == Letters.image).sum() == len(s.images) for s in after.segments for ids in [s.token_ids])
    assert after.evidence == before.evidence


async def test_what_is_cut_out_is_inside_the_picture(images):
    it = await played(images, Lens(), look(box="900,900,1000,1000"), preset="extended+crops")
    crop = it.tool_calls[0].result
    assert crop.crop_box is not None
    assert crop.crop_box[2:] == (SIZE, SIZE)
    assert crop.crop is not None
    assert pixels(images.get(crop.crop)) == pixels(SCENE, crop.crop_box)
