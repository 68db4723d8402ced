"""What the learner feeds a model is what the model's own processor makes of the same conversation: ids, pixels, and
three-dimensional positions, also of pictures that came back from a search."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from actors.agent.trajectory import (
    Ending,
    RewardParts,
    Segment,
    SegmentKind,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.learner.batch import to_micro_batches, train_sequences
from actors.model.batch import collate
from actors.model.expansion import expand
from actors.model.forward import token_logprobs
from actors.model.images import BlobImages
from actors.model.load import load_policy
from actors.model.pixels import Pixels
from actors.model.renderer import load_renderer
from actors.model.tiny import MERGE, save_tiny
from cluster.blobs import BlobStore
from tests.unit.actors.model.small import FAMILIES

SIZES = [(112, 112), (200, 60), (60, 200), (150, 100)]  # pixels; their grids differ in both families


class World:
    """A model folder, its own processor, and pictures."""

    def __init__(self, folder, root, size) -> None:
        self.folder = save_tiny(["who founded it? ilse tarn."] * 3, folder, tags=("<reason>",), size=size)
        self.processor = AutoProcessor.from_pretrained(folder)
        self.renderer = load_renderer(folder)
        self.model = load_policy(folder).eval()
        self.images = BlobImages(BlobStore(root))
        self.pixels = Pixels.load(folder, self.images)
        self.pictures = [self._picture(i, width, height) for i, (width, height) in enumerate(SIZES)]
        self.refs = []
        for picture in self.pictures:
            out = io.BytesIO()
            picture.save(out, format="PNG")
            self.refs.append(self.images.put(out.getvalue()))

    @staticmethod
    def _picture(seed: int, width: int, height: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))

    def said(self, text: str) -> Segment:
        ids = self.renderer.action(text)
        n = len(ids)
        spans = (VersionSpan(WeightVersion(0), 0, n),)
        return Segment(SegmentKind.ACTION, ids, np.full(n, -1, np.float32), spans, text=text)

    def episode(self) -> list[Segment]:
        """Two pictures in the question; a search brings two thumbnails."""
        return [
            self.renderer.open("<image> and <image>: who founded it?", self.refs[:2]),
            self.said("<reason>ilse?"),
            self.renderer.observe("1. <image> ilse 2. <image> tarn", self.refs[2:]),
            self.said("<reason>ilse tarn."),
        ]

    def as_messages(self) -> list[dict]:
        """The same, as transformers is told it."""

        def parts(*items: str) -> list[dict]:
            return [{"type": "image"} if item == "<image>" else {"type": "text", "text": item} for item in items]

        return [
            {"role": "user", "content": parts("<image>", " and ", "<image>", ": who founded it?")},
            {"role": "assistant", "content": "<reason>ilse?"},
            {"role": "user", "content": parts("1. ", "<image>", " ilse 2. ", "<image>", " tarn")},
            {"role": "assistant", "content": "<reason>ilse tarn."},
        ]

    def processed(self) -> dict[str, torch.Tensor]:
        text = self.processor.apply_chat_template(self.as_messages(), tokenize=False)
        return dict(self.processor(text=[text.rstrip("\n")], images=self.pictures, return_tensors="pt"))


@pytest.fixture(scope="module", params=list(FAMILIES))
def world(request, tmp_path_factory):
    return World(tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("blobs"), FAMILIES[request.param])


def positions_seen_by(model, run) -> torch.Tensor:
    """The position ids [3, batch, seq] that the language model is given while `run` runs."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["position_ids"])

    handle = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        run()
    handle.remove()
    (positions,) = seen
    return positions


def by_hand(ids: Sequence[int], image_token: int, grids: Sequence[Sequence[int]]) -> list[list[int]]:
    """(time, row, column) of every token: text counts all three on; a picture has one time, its rows and columns, and
    what follows goes on behind the larger side of its grid."""
    found, at, i, left = [], 0, 0, list(grids)
    while i < len(ids):
        if ids[i] != image_token:
            found.append([at, at, at])
            at, i = at + 1, i + 1
            continue
        _, rows, columns = left.pop(0)
        rows, columns = rows // MERGE, columns // MERGE
        found += [[at, at + row, at + column] for row in range(rows) for column in range(columns)]
        at, i = at + max(rows, columns), i + rows * columns
    return found


def test_ids_and_pixels_of_a_conversation_are_those_of_the_models_own_processor(world):
    theirs = world.processed()
    ours = expand(world.episode(), world.renderer.image_token)
    batch = collate([ours], world.pixels, 0)
    assert batch.input_ids.tolist() == theirs["input_ids"].tolist()
    assert torch.equal(batch.image_grid_thw, theirs["image_grid_thw"])
    assert torch.equal(batch.pixel_values, theirs["pixel_values"])


def test_positions_in_training_are_those_that_transformers_gives_its_own_processors_output(world):
    theirs = world.processed()
    expected, _ = world.model.model.get_rope_index(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        image_grid_thw=theirs["image_grid_thw"],
    )
    batch = collate([expand(world.episode(), world.renderer.image_token)], world.pixels, 0)
    assert torch.equal(positions_seen_by(world.model, lambda: token_logprobs(world.model, batch)), expected)


def test_thumbnails_that_a_search_brought_have_rows_and_columns_of_their_own_in_training(world):
    """From trajectory to forward pass as a learner goes, in a batch with a shorter episode that shows them again."""
    long, short = world.episode(), [world.renderer.open("<image>?", world.refs[2:3]), world.said("tarn.")]
    group = [
        Trajectory("q", i, tuple(segments), (), Ending.ANSWERED, reward=RewardParts(float(i), float(i), 1.0, 1.0, 1))
        for i, segments in enumerate((long, short))
    ]
    token = world.renderer.image_token
    found, _ = train_sequences([group], advantage="mean", image_token_id=token, max_length=500, version=0)
    assert len(found) == 2
    (batch,) = to_micro_batches(found, world.pixels, 0, 10_000)
    positions = positions_seen_by(world.model, lambda: token_logprobs(world.model, batch))
    grids = iter(batch.image_grid_thw.tolist())
    for row, sequence in enumerate(found):
        ids = sequence.expanded.token_ids.tolist()
        expected = by_hand(ids, token, [next(grids) for _ in sequence.expanded.images])
        assert positions[:, row, : len(ids)].T.tolist() == expected
        assert len({tuple(place) for place, i in zip(expected, ids, strict=True) if i == token}) == ids.count(token)
