"""How large a model is: its parameters by part, counted on the real architecture, and the shapes of its layers.

transformers builds the architecture on torch's meta device, where tensors have shapes and no memory, and the learner's
own functions freeze it and put adapters on it: what is counted here is what a learner would hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.model.bounds import PROCESSOR_FILES, pixel_bounds
from actors.model.settings import split_address
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.capacity.known import KNOWN, known_model

if TYPE_CHECKING:
    from actors.learner.settings import LoraSettings


@dataclass(frozen=True)
class ModelFiles:
    """What a model's folder, or the known model that its address names, says about it."""

    address: str
    config: dict[str, Any]
    most_pixels: int | None  # of one picture; None where the folder does not say
    shipped: bool  # the numbers are this package's: the folder is not there


@dataclass(frozen=True)
class TextShape:
    """The language model's layers."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int  # width of one
    mlp: int
    vocabulary: int
    query_norms: bool  # queries and keys are normalised, as Qwen3's

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head


@dataclass(frozen=True)
class VisionShape:
    """The vision tower's layers."""

    hidden: int
    layers: int
    mlp: int
    gated: bool  # a SwiGLU's two products and RMSNorms, as Qwen2.5's; else one product and LayerNorms
    patch: int  # pixels a side
    merge: int  # patches a side that become one token
    inputs: int  # numbers of a patch
    projectors: int  # Qwen3 has one more for each deep layer that is shown to the language model

    @property
    def patches_per_token(self) -> int:
        return self.merge**2

    @property
    def pixels_per_token(self) -> int:
        return (self.patch * self.merge) ** 2


@dataclass(frozen=True)
class Parts:
    """Counts of parameters."""

    vision: int  # the tower without its projector
    projector: int
    language: int  # layers and last norm
    embeddings: int  # the input's, and the head's where it is another

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.language + self.embeddings


@dataclass(frozen=True)
class Architecture:
    """A model as a learner holds it."""

    name: str
    text: TextShape
    vision: VisionShape
    parts: Parts  # of the base model
    trained: Parts  # those of them that have gradients
    adapters: int  # parameters of LoRA, all trained
    largest: int  # the largest trained parameter

    @property
    def held(self) -> int:
        """Parameters in a learner's memory."""
        return self.parts.total + self.adapters

    @property
    def learned(self) -> int:
        """Parameters that have gradients and optimizer states."""
        return self.trained.total + self.adapters


def model_files(address: str) -> ModelFiles:
    """Of a folder (local or s3://) if there is one, else of a known model. Raise `UserError` without either."""
    plain, pictures = split_address(address)
    folder, known = Folder(plain), known_model(plain)
    if folder.exists("config.json"):
        most = pictures.max_pixels or _most_pixels(folder)
        return ModelFiles(plain, _read(folder, "config.json"), most, shipped=False)
    if known is not None:
        return ModelFiles(plain, known.config, pictures.max_pixels or known.most_pixels, shipped=True)
    raise UserError(
        f"There is no model at {plain}, and its name is none of those that can be planned for without their folder: "
        f"{', '.join(KNOWN)}."
    )


def architecture(files: ModelFiles, freeze: tuple[str, ...] = (), lora: LoraSettings | None = None) -> Architecture:
    """Count the parameters of a model whose `freeze` parts are left alone, or which is trained through LoRA alone."""
    model, config = _without_memory(files), files.config
    every = {id(p): p.numel() for p in model.parameters()}
    text, vision = _text_shape(model.config, model), _vision_shape(model.config, model)
    parts = _by_part(model, set(every))
    if lora is not None:
        from actors.learner.adapters import add_adapters

        add_adapters(model, lora)
    elif freeze:
        from actors.learner.parts import freeze_parts

        freeze_parts(model, freeze)
    learned = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    return Architecture(
        name=files.address.rstrip("/").rpartition("/")[2] or str(config.get("model_type")),
        text=text,
        vision=vision,
        parts=_counted(parts, every),
        trained=_counted(parts, {key: n for key, n in every.items() if key in learned}),
        adapters=sum(n for key, n in learned.items() if key not in every),
        largest=max(learned.values(), default=0),
    )


def _without_memory(files: ModelFiles) -> Any:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    kind = str(files.config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{files.address} is of the kind {kind}, which transformers does not know.")
    try:
        config = CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(files.config)))
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{files.address} is no model that reads text and pictures: {reason}.") from error


def _by_part(model: Any, every: set[int]) -> dict[str, set[int]]:
    """Ids of parameters by part, as the learner's own freezing finds them."""
    from actors.learner.parts import freeze_parts

    embeddings = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    found: dict[str, set[int]] = {}
    for part in ("vision", "projector"):
        freeze_parts(model, [part])
        found[part] = {id(p) for p in model.parameters() if not p.requires_grad}
        model.requires_grad_(True)
    rest = every - embeddings - found["vision"] - found["projector"]
    return found | {"embeddings": embeddings, "language": rest}


def _counted(parts: dict[str, set[int]], sizes: dict[int, int]) -> Parts:
    return Parts(**{name: sum(sizes.get(key, 0) for key in keys) for name, keys in parts.items()})


def _text_shape(config: Any, model: Any) -> TextShape:
    text, names = config.get_text_config(), [name for name, _ in model.named_parameters()]
    heads = _number(text, "num_attention_heads")
    return TextShape(
        hidden=_number(text, "hidden_size"),
        layers=_number(text, "num_hidden_layers"),
        heads=heads,
        kv_heads=_number(text, "num_key_value_heads", default=heads),
        head=_number(text, "head_dim", default=_number(text, "hidden_size") // heads),
        mlp=_number(text, "intermediate_size"),
        vocabulary=_number(text, "vocab_size"),
        query_norms=any(name.endswith("self_attn.q_norm.weight") for name in names),
    )


def _vision_shape(config: Any, model: Any) -> VisionShape:
    from actors.learner.parts import vision_tower

    vision = config.vision_config
    patch, frames = _number(vision, "patch_size"), _number(vision, "temporal_patch_size", default=1)
    return VisionShape(
        hidden=_number(vision, "hidden_size"),
        layers=_number(vision, "depth", "num_hidden_layers"),
        mlp=_number(vision, "intermediate_size"),
        gated=any("gate_proj" in name for name, _ in vision_tower(model).named_parameters()),
        patch=patch,
        merge=_number(vision, "spatial_merge_size", default=1),
        inputs=_number(vision, "in_channels", default=3) * frames * patch**2,
        projectors=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
    )


def _number(config: Any, *names: str, default: int | None = None) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    if default is None:
        raise UserError(f"{type(config).__name__} does not say {' or '.join(names)}, which a plan needs.")
    return default


def _most_pixels(folder: Folder) -> int | None:
    for name in PROCESSOR_FILES:
        if folder.exists(name) and (most := pixel_bounds(_read(folder, name)).max_pixels):
            return most
    return None


def _read(folder: Folder, name: str) -> dict[str, Any]:
    try:
        content = folder.read_json(name)
    except ValueError as error:
        raise UserError(f"{name} of {folder} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} of {folder} is not a JSON object.")
    return content
