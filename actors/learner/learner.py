"""One rank of the policy learner: episodes in, weights out. No Ray here; `actor.py` puts it behind one.

Always true: every method is called on all ranks together and in the same order; rank 0 writes what is shared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.agent.seams import ImageStore
from actors.agent.trajectory import Trajectory
from actors.learner.adapters import add_adapters, base_weights
from actors.learner.backends import build_backend
from actors.learner.backends.protocol import StepStats, together
from actors.learner.backends.ranks import Ranks, join
from actors.learner.batch import TrainSequence, share, split_steps, to_micro_batches, train_sequences
from actors.learner.objective import PolicyObjective
from actors.learner.parts import freeze_parts
from actors.learner.reference import Reference
from actors.learner.settings import LearnerSettings
from actors.model.load import copy_without_weights, exporting, load_policy, local_model, upload_model
from actors.model.pixels import Pixels
from actors.weights.build import build_transport
from actors.weights.manifest import INDEX_FILE, WeightTicket, weight_files
from cluster.allocator import keep_freed_memory
from cluster.errors import UserError
from cluster.storage import Folder

if TYPE_CHECKING:
    from actors.model.batch import TokenBatch
    from actors.weights.nccl import Peer
    from actors.weights.transport import WeightTransport

META_FILE = "learner.json"
STATE_FORMAT = 2  # of what a backend saves: whole tensors, for any number of ranks and any ZeRO stage
NOTHING = "no group had anything to teach"


class Learner:
    """The policy, its optimizer, and the way out for its weights."""

    def __init__(
        self,
        model: str,
        settings: LearnerSettings,
        images: ImageStore,
        weights_root: str,
        ranks: Ranks | None = None,
        *,
        address: str = "",
        port: int = 0,
    ) -> None:
        """`model` is a model folder (local or s3://); `weights_root` is where versions lie in shared memory."""
        keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.ranks = join(ranks or Ranks(), address=address, port=port, timeout_s=settings.backend.timeout_s)
        self._settings = settings
        self._source = local_model(model)
        dtype = "float32" if settings.backend.precision == "fp32" else "bfloat16"
        policy = load_policy(self._source, dtype)
        freeze_parts(policy, settings.freeze)
        if settings.lora is not None:
            add_adapters(policy, settings.lora)
        self._image_token = int(policy.config.image_token_id)
        self._pad = _pad_id(policy.config)
        self._pixels = Pixels.load(self._source, images, dtype=dtype)
        self._backend = build_backend(policy, settings.backend, self.ranks)
        self._objective = PolicyObjective(settings.objective)
        self._reference = self._second_copy()
        self._transport = self._way_out(Path(weights_root))

    def _way_out(self, root: Path) -> WeightTransport:
        publish = self._settings.publish
        if publish.transport != "nccl":
            return build_transport(publish, root, config_from=self._source)
        from actors.weights.nccl import NamedShape, NcclTransport

        backend: Any = self._backend  # both kinds have a `model`

        def shapes() -> list[NamedShape]:
            found = ((weight.name, weight.parts[0]) for weight in base_weights(backend.model))
            return [NamedShape(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in found]

        timeout_s = self._settings.backend.timeout_s
        return NcclTransport(shapes, self._backend.named_weights, self.ranks.rank, timeout_s=timeout_s)

    def connect(self, peers: Sequence[Peer]) -> None:
        """The samplers that new weights are sent to, where they go from GPU to GPU; nothing to do elsewhere."""
        from actors.weights.nccl import NcclTransport

        if isinstance(self._transport, NcclTransport):
            self._transport.connect(peers)

    def _second_copy(self) -> Reference | None:
        """Of the model as it starts, where one is needed. A resumed run starts from the same folder."""
        settings = self._settings
        if settings.objective.kl == "none" or settings.lora is not None:
            return None
        offload = settings.objective.reference_offload
        return Reference.load(self._source, settings.backend, self._backend.device, offload=offload)

    def train(self, groups: Sequence[Sequence[Trajectory]], version: int) -> StepStats:
        """Learn from one batch of groups; `version` is that of the weights trained from.

        `steps_per_batch` optimizer steps; the statistics are of all of them together (`protocol.together`). When
        nothing can be learned no step is made and `skipped` says so.
        """
        sequences, report = train_sequences(
            groups,
            advantage=self._settings.advantage,
            image_token_id=self._image_token,
            max_length=self._settings.max_length,
            version=version,
            mask=self._settings.mask,
            flat_groups=self._settings.flat_groups,
        )
        parts = split_steps(sequences, self._settings.steps_per_batch)
        if not parts:
            empty = StepStats(self._backend.steps, 0.0, 0.0, 0.0, 0, 0, 0, 0.0, skipped=NOTHING)
            return replace(empty, metrics=report.metrics())
        done = together([self._step(part, old) for part, old in zip(parts, self._proximal(parts), strict=True)])
        return replace(done, metrics=done.metrics | report.metrics())

    def _proximal(self, parts: Sequence[Sequence[TrainSequence]]) -> list[list[torch.Tensor] | None]:
        """For each step of a batch: log-probs under the weights that the batch begins with, where they will be others.

        Each step's micro-batches are made for that and let go, and made again when it is its turn: with their pictures
        those of one step are large, those of all may be more than the host has.
        """
        if len(parts) == 1 or self._settings.objective.proximal != "learner":
            return [None] * len(parts)
        return [self._backend.logprobs(self._micro_batches(part), self._objective.temperature) for part in parts]

    def _step(self, part: Sequence[TrainSequence], proximal: list[torch.Tensor] | None) -> StepStats:
        batches, temperature = self._micro_batches(part), self._objective.temperature
        if proximal is not None:
            self._attach(batches, "proximal", proximal)
        if self._reference is not None:
            self._attach(batches, "reference", self._reference.logprobs(batches, temperature))
        elif self._settings.objective.kl != "none":
            self._attach(batches, "reference", self._backend.logprobs(batches, temperature, adapters=False))
        return self._backend.train_batch(batches, self._objective)

    def _micro_batches(self, part: Sequence[TrainSequence]) -> list[TokenBatch]:
        """This rank's, the same each time."""
        mine = share(part, self.ranks.rank, self.ranks.world)
        return to_micro_batches(mine, self._pixels, self._pad, self._settings.micro_batch_tokens)

    @staticmethod
    def _attach(batches: Sequence[TokenBatch], name: str, values: Sequence[torch.Tensor]) -> None:
        """Lay flat values of the trained tokens of each batch out as an extra [batch, seq]."""
        for batch, flat in zip(batches, values, strict=True):
            extra = torch.zeros(batch.loss_mask.shape)
            extra[batch.loss_mask] = flat.cpu()
            batch.extras[name] = extra

    def publish(self, version: int) -> WeightTicket | None:
        """Write the present weights as `version`; the ticket on rank 0, None on the others."""
        weights = self._backend.named_weights()
        if self.ranks.rank == 0 or self._settings.publish.transport == "nccl":
            ticket = self._transport.send(version, weights)
            return ticket if self.ranks.rank == 0 else None
        for _ in weights:  # under ZeRO-3 every rank takes part in gathering each bucket
            pass
        return None

    def save(self, address: str) -> None:
        """Weights and optimizer state into a folder (local or s3://). The caller makes a checkpoint atomic."""
        folder = Folder(address)
        with ExitStack() as scratch:
            local = _working_copy(folder, scratch)
            self._backend.save(local)
            if self.ranks.rank == 0:
                (local / META_FILE).write_text(json.dumps(self._identity()))
            if not folder.is_local:
                folder.upload(local)

    def load(self, address: str) -> None:
        """Continue from `save`. Raise UserError for what is missing, damaged, or of another kind of learner."""
        folder = Folder(address)
        try:
            saved = folder.read_json(META_FILE)
        except (OSError, ValueError) as error:
            raise UserError(f"{address} holds no learner checkpoint: {error}") from error
        mine = self._identity()
        for key in sorted(mine.keys() | saved.keys()):
            if saved.get(key) != mine.get(key):
                raise UserError(f"The checkpoint {address} has {key} {saved.get(key)}, this run has {mine.get(key)}.")
        self._backend.load(address)

    def export(self, address: str) -> None:
        """A complete model folder in Hugging Face format; its config, which makes it one, is written last."""
        with exporting(self._source, Folder(address), copies=self.ranks.rank == 0) as written:
            self._backend.export(written)

    def keep(self, version: int, address: str) -> None:
        """Copy the version that was published last into a model folder as `export` writes it.

        Raise `TornPublish` for one that is gone.
        """
        if self.ranks.rank != 0:
            return
        folder = Folder(address)
        with ExitStack() as held:
            published = held.enter_context(self._transport.opened(version))
            rest = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="mmsearch-keep-")))
            copy_without_weights(self._source, rest)
            for file in (*weight_files(published), *published.glob(INDEX_FILE)):
                folder.upload(file, file.name)
            upload_model(rest, folder)

    def close(self) -> None:
        """Delete the published versions."""
        if self.ranks.rank == 0 or self._settings.publish.transport == "nccl":
            self._transport.close()

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the learner that continues it."""
        backend = self._settings.backend
        identity: dict[str, Any] = {"format": STATE_FORMAT, "kind": backend.kind, "precision": backend.precision}
        if self._settings.freeze:
            identity["freeze"] = sorted(self._settings.freeze)
        if self._settings.lora is not None:
            identity["lora"] = asdict(self._settings.lora)
        return identity


def _pad_id(config: Any) -> int:
    """Any id would do, as padding is masked; an image's would not, as placeholders are counted."""
    found = getattr(config.get_text_config(), "pad_token_id", None)
    return 0 if found is None else int(found)


def _working_copy(folder: Folder, scratch: ExitStack) -> Path:
    if folder.is_local:
        folder.local_path.mkdir(parents=True, exist_ok=True)
        return folder.local_path
    return Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="mmsearch-checkpoint-")))
