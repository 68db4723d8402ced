"""Grounding DINO: where in a picture is what the words name? The model, the actor that holds it, and its client.

    DinoGrounder (in every search worker) --> GroundingDinoActor (one per model and settings) --> GroundingDino
    by dotted path in configuration           gathers calls into batches                         pure torch

Always true: a result depends on the picture, the words and the model alone, not on whatever else was in the batch
(but for rounding): pictures are padded to sizes that they have by themselves, and only equal sizes share a batch.
Boxes lie inside the picture and have an area. Nothing heavy is imported before the model is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from actors.search import pictures
from actors.search.grounding.batching import Batches
from actors.search.seams import ErrorKind, ProviderError, ScoredBox
from cluster.errors import UserError
from cluster.runtime import NAMESPACE

if TYPE_CHECKING:
    import torch

LONGEST_ASPECT = 16  # a thinner picture is widened: the model's preprocessing would scale its shorter side to nothing
LEAST_SIDE = 16  # pixels, for the same reason
MAX_EXPRESSION_CHARS = 2000  # beyond it the words do not reach the model: it reads a few hundred tokens
_SEPARATORS = re.compile(r"[.?。？]+")  # the model takes them for the end of a phrase


@dataclass(frozen=True)
class DinoSettings:
    """A loaded model and how it is asked. One actor is shared by all that have the same."""

    model: str
    # folder of a checkpoint, or its name on the hub
    threshold: float = 0.25
    # least score of a detection; transformers' default
    nms_iou: float = 0.7
    # of two boxes that overlap by more the better one stays; transformers has no suppression
    pad_to: int = 160
    # pixels; sides are padded to multiples of it, so that few sizes occur. The usual shorter side of 800 is one
    max_batch: int = 8
    # pictures in one pass
    max_waiting: int = 256
    # calls beyond the ones under way; further ones are refused at once
    gather_ms: float = 5.0
    # for which the first call of a batch waits for others

    def __post_init__(self) -> None:
        """Raises UserError for values that make no sense."""
        if not self.model:
            raise UserError("Grounding DINO's model must name a checkpoint.")
        if not (0 <= self.threshold <= 1 and 0 <= self.nms_iou <= 1):
            raise UserError("Grounding DINO's threshold and nms_iou must be in 0..1.")
        if min(self.pad_to, self.max_batch, self.max_waiting) < 1 or not self.gather_ms >= 0:
            raise UserError(
                "Grounding DINO's pad_to, max_batch and max_waiting must be at least 1, gather_ms 0 or more."
            )


# --- the model ------------------------------------------------------------------------------------------------


class GroundingDino:
    """A model in this process, on a GPU where there is one."""

    def __init__(self, settings: DinoSettings) -> None:
        """Load it. Raises OSError or ValueError for what is no checkpoint of such a model."""
        import torch
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._settings = settings
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        processor: Any = AutoProcessor.from_pretrained(settings.model)
        model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(settings.model, dtype=torch.float32)
        self._model = model.to(self._device).eval()
        self._tokenizer, self._image_processor = processor.tokenizer, processor.image_processor

    def detect(self, images: Sequence[Image.Image], expressions: Sequence[str]) -> list[list[ScoredBox]]:
        """For each picture the boxes of what its expression names, best first, in pixels of that picture.

        An expression in which nothing is named is nowhere.
        """
        found: list[list[ScoredBox]] = [[] for _ in images]
        prompts = [self.prompt(expression) for expression in expressions]
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        canvases: dict[int, tuple[int, int]] = {}
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            if prompt:
                canvas = widened(image.convert("RGB"))
                inputs[i], canvases[i] = self._pixels(canvas), canvas.size
                groups[tuple(inputs[i][0].shape)].append(i)
        for members in groups.values():
            for first in range(0, len(members), self._settings.max_batch):
                batch = members[first : first + self._settings.max_batch]
                scores, boxes = self._forward([inputs[i] for i in batch], [prompts[i] for i in batch])
                for row, i in enumerate(batch):
                    found[i] = self._boxes(scores[row], boxes[row], canvases[i], images[i].size)
        return found

    def prompt(self, expression: str) -> str:
        """`expression` as one phrase in the model's form, lower case with a full stop; "" when it names nothing.

        What goes beyond the model's number of tokens is left out, as its checkpoints fail on longer prompts.
        """
        phrase = " ".join(_SEPARATORS.sub(" ", expression[:MAX_EXPRESSION_CHARS]).lower().split())
        if not re.search(r"\w", phrase):
            return ""
        if self._fits(phrase):
            return f"{phrase}."
        fitting, too_long = 0, len(phrase)
        while too_long - fitting > 1:
            middle = (fitting + too_long) // 2
            if self._fits(phrase[:middle]):
                fitting = middle
            else:
                too_long = middle
        return f"{phrase[:fitting].rstrip()}." if fitting else ""

    def _fits(self, phrase: str) -> bool:
        return len(self._tokenizer(f"{phrase}.", verbose=False)["input_ids"]) <= self._model.config.max_text_len

    def _pixels(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [3, height, width] and mask [height, width] of the scaled picture, padded to multiples of pad_to."""
        from torch.nn.functional import pad

        scaled = self._image_processor(images=[image], return_tensors="pt")
        values, mask = scaled["pixel_values"][0], scaled["pixel_mask"][0]
        height, width = mask.shape
        step = self._settings.pad_to
        missing = (0, -width % step, 0, -height % step)
        return pad(values, missing), pad(mask, missing)

    def _forward(
        self, inputs: Sequence[tuple[torch.Tensor, torch.Tensor]], prompts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [batch, queries] and boxes [batch, queries, 4] as x0, y0, x1, y1 in 0..1 of the unpadded picture."""
        import torch

        text = self._tokenizer(list(prompts), padding=True, return_token_type_ids=True, return_tensors="pt")
        values = torch.stack([values for values, _ in inputs]).to(self._device)
        mask = torch.stack([mask for _, mask in inputs]).to(self._device)
        with torch.inference_mode():
            out = self._model(pixel_values=values, pixel_mask=mask, **text.to(self._device))
        scores = out.logits.float().sigmoid().amax(dim=-1).cpu()
        centre, size = out.pred_boxes.float().cpu().split(2, dim=-1)
        return scores, torch.cat([centre - size / 2, centre + size / 2], dim=-1)

    def _boxes(
        self, scores: torch.Tensor, boxes: torch.Tensor, canvas: tuple[int, int], size: tuple[int, int]
    ) -> list[ScoredBox]:
        """What of `scores` [queries] and `boxes` [queries, 4] of a canvas lies in the picture at its upper left."""
        import torch

        scale = torch.tensor([*canvas, *canvas], dtype=torch.float32)
        limit = torch.tensor([*size, *size], dtype=torch.float32)
        boxes = torch.minimum((boxes * scale).clamp(min=0), limit)
        real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        wanted = (scores > self._settings.threshold) & real  # what is no number is not greater, here and above
        scores, boxes = scores[wanted], boxes[wanted]
        kept = suppressed(boxes, scores, self._settings.nms_iou)
        return [ScoredBox(tuple(boxes[i].tolist()), float(scores[i])) for i in kept]


def suppressed(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> list[int]:
    """Indices that stay of `boxes` [n, 4] with `scores` [n], best first: none overlaps a better one by over `iou`."""
    import torch

    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low, high = torch.maximum(boxes[best, :2], boxes[left, :2]), torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(dim=-1)
        left = left[shared <= iou * (area[best] + area[left] - shared)]
    return kept


def widened(image: Image.Image) -> Image.Image:
    """`image`, or, if it is too thin or too small for the model, a grey canvas with it at the upper left."""
    width, height = image.size
    least = max(LEAST_SIDE, math.ceil(max(width, height) / LONGEST_ASPECT))
    if min(width, height) >= least:
        return image
    canvas = Image.new("RGB", (max(width, least), max(height, least)), (127, 127, 127))
    canvas.paste(image, (0, 0))
    return canvas


# --- the actor and its client ---------------------------------------------------------------------------------


class GroundingDinoActor:
    """One model in a process of its own, for all workers. Becomes an actor where it is started."""

    def __init__(self, settings: DinoSettings) -> None:
        """Loads the model. One that cannot be loaded is told to every caller, rather than tried again by each."""
        self._settings, self._dino, self._problem = settings, None, ""
        try:
            self._dino = GroundingDino(settings)
        except Exception as error:  # transformers raises nearly everything for what is no checkpoint
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            self._problem = f"the grounding model {settings.model} cannot be loaded: {type(error).__name__}: {reason}"
        self._batches: Batches[tuple[Image.Image, str], list[ScoredBox]] = Batches(
            self._detect,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            gather_s=settings.gather_ms / 1e3,
        )

    async def ready(self) -> None:
        """Returns once the model is loaded. Raises UserError for one that cannot be."""
        if self._dino is None:
            raise UserError(f"{self._problem}.")

    async def ground(self, image: bytes, expression: str) -> list[ScoredBox]:
        """As `Grounder.ground`. An unreadable picture is the BAD_REQUEST of its own caller alone."""
        if self._dino is None:
            raise ProviderError(ErrorKind.BAD_REQUEST, self._problem)
        picture = await asyncio.to_thread(_decoded, image)
        return await self._batches.ask((picture, expression))

    def _detect(self, requests: Sequence[tuple[Image.Image, str]]) -> list[list[ScoredBox]]:
        import torch

        assert self._dino is not None  # else nobody is let in
        try:
            return self._dino.detect([image for image, _ in requests], [expression for _, expression in requests])
        except torch.OutOfMemoryError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "the grounding model is out of GPU memory") from error
        except (RuntimeError, ValueError) as error:
            message = f"the grounding model fails on this picture: {str(error)[:300]}"
            raise ProviderError(ErrorKind.BAD_REQUEST, message) from error


def _decoded(data: bytes) -> Image.Image:
    try:
        pictures.check(data)
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (pictures.UnreadablePicture, OSError, ValueError) as error:
        raise ProviderError(ErrorKind.BAD_REQUEST, str(error)) from error


class DinoGrounder:
    """The Grounder for configurations: `actors.search.grounding.dino:DinoGrounder`, kwargs {model: a folder}.

    The first call gets or makes the actor; all workers of a cluster that configure the same share it. It ends with
    the worker that made it, and the next call of another makes it anew. In a process that is not connected to Ray,
    as in a shell, the model is held by the process itself.
    """

    def __init__(self, model: str, num_gpus: float = 0.0, num_cpus: float = 1.0, **settings: Any) -> None:
        """`num_gpus`, `num_cpus`: what Ray reserves for the actor; `settings`: further fields of DinoSettings."""
        self._settings = DinoSettings(model=model, **settings)
        self._resources = {"num_gpus": num_gpus, "num_cpus": num_cpus}
        self._starting = asyncio.Lock()
        self._actor: Any = None
        self._doubtful = False  # the actor failed to answer: it may have died for good
        self._here: GroundingDinoActor | None = None

    @property
    def actor_name(self) -> str:
        """Ray's name of the actor: the same for the same settings."""
        known = json.dumps([asdict(self._settings), self._resources], sort_keys=True)
        return f"grounding-dino-{hashlib.sha256(known.encode()).hexdigest()[:12]}"

    async def prepare(self) -> None:
        """Load the model, before anybody asks. Raises UserError for one that cannot be."""
        import ray

        if ray.is_initialized():
            await (await self._shared_actor()).ready.remote()
        else:
            await (await self._in_this_process()).ready()

    async def ground(self, image: bytes, expression: str) -> list[ScoredBox]:
        """As `Grounder.ground`. Raises ProviderError: TRANSIENT for an actor that has died; the next call makes one."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        if not ray.is_initialized():
            return await (await self._in_this_process()).ground(image, expression)
        actor = await self._shared_actor()
        call: Any = None
        try:
            call = actor.ground.remote(image, expression)
            return await call
        except asyncio.CancelledError:
            if call is not None:
                ray.cancel(call)  # or the model would work for nobody
            raise
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ProviderError):
                raise cause from None
            raise ProviderError(ErrorKind.SCHEMA, f"the grounding actor failed: {type(cause).__name__}") from error
        except TaskCancelledError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "the grounding call was cancelled") from error
        except RayError as error:
            self._doubtful = True
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            raise ProviderError(ErrorKind.TRANSIENT, f"the grounding actor is gone: {reason}") from error

    async def _shared_actor(self) -> Any:
        async with self._starting:
            if self._actor is None or self._doubtful:
                found = await asyncio.to_thread(self._get_or_create)
                if found != self._actor:  # one that restarts lives as long as the handle that it was made with
                    self._actor = found
                self._doubtful = False
            return self._actor

    def _get_or_create(self) -> Any:
        import ray
        from ray.exceptions import RayError

        settings = self._settings
        options: dict[str, Any] = {
            **self._resources,
            "name": self.actor_name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "max_restarts": -1,
            "max_concurrency": settings.max_waiting + 2 * settings.max_batch,
        }
        try:
            return ray.remote(GroundingDinoActor).options(**options).remote(settings)
        except (ValueError, RayError) as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"the grounding actor cannot be started: {error}") from error

    async def _in_this_process(self) -> GroundingDinoActor:
        async with self._starting:
            if self._here is None:
                self._here = await asyncio.to_thread(GroundingDinoActor, self._settings)
            return self._here
