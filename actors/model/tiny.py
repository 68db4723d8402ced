"""Make a small, real Qwen2.5-VL or Qwen3-VL from nothing, in Hugging Face format: tokenizer, processor, random weights.

It is the architecture of the 7B or 8B model with smaller numbers, so that vLLM and transformers load it as they load
the real one. The embedded base model starts here, and so do the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from actors.model.load import Policy

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
MERGE = 2  # patches a side that become one token, in both families

# Qwen's own chat layout, without its default system message
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Numbers of a small model. The defaults make 1.5 M parameters and 16 tokens of a 112 x 112 picture."""

    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    hidden: int = 128  # text width
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    mrope_section: tuple[int, int, int] = (4, 6, 6)  # sums to half a head's width
    vision_hidden: int = 96
    vision_layers: int = 3
    vision_heads: int = 4
    vision_mlp: int = 256
    vocabulary: int = 1024
    max_positions: int = 4096
    picture: int = 112  # pixels a side; larger pictures are scaled down by the image processor
    initializer_range: float = 0.08  # about 1/sqrt(hidden): transformers' 0.02 learns copying three times slower
    vision_gain: float = 1.0  # the vision tower's initial weights times this; 4 helped AdamW, and hinders Muon

    @property
    def patch(self) -> int:
        """Pixels a side of what the vision tower reads as one, as in the large models."""
        return 14 if self.family == "qwen2_5_vl" else 16

    @property
    def least_pixels(self) -> int:
        """Of a picture: four tokens; smaller ones are scaled up by the image processor."""
        return (2 * MERGE * self.patch) ** 2


# Qwen3-VL interleaves its rotary sections, and its patches have 16 pixels a side: again 16 tokens of a picture
QWEN3 = TinySize(family="qwen3_vl", mrope_section=(6, 5, 5), picture=128)


def build_tokenizer(texts: Iterable[str], vocabulary: int, tags: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`; each of `tags` becomes one ordinary (visible) token.

    A space is put before every run of text, also after a tag, so that a word is the same tokens wherever it stands.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE_PAD,
            "video_token": VIDEO_PAD,
            "vision_bos_token": VISION_START,
            "vision_eos_token": VISION_END,
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, size: TinySize, seed: int) -> Policy:
    """A model with random float32 weights for this tokenizer."""
    import torch
    import transformers

    known = tokenizer.get_vocab()
    config: dict[str, Any] = {
        "text_config": _text(size, tokenizer),
        "vision_config": _vision(size),
        "tie_word_embeddings": False,
        "image_token_id": known[IMAGE_PAD],
        "video_token_id": known[VIDEO_PAD],
        "vision_start_token_id": known[VISION_START],
        "vision_end_token_id": known[VISION_END],
    }
    torch.manual_seed(seed)
    model: Policy
    if size.family == "qwen2_5_vl":
        model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**config))
    else:
        model = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**config))
    with torch.no_grad():
        # what is copied from the input is then said in the same direction for all tokens at once: sooner learned
        model.lm_head.weight.copy_(model.model.language_model.embed_tokens.weight)
        for parameter in model.model.visual.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(size.vision_gain)
    return model


def _text(size: TinySize, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    known = tokenizer.get_vocab()
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(size.mrope_section)}
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_positions,
        "initializer_range": size.initializer_range,
        "bos_token_id": known[END_OF_TEXT],
        "eos_token_id": known[TURN_END],
        "pad_token_id": known[END_OF_TEXT],
        "tie_word_embeddings": False,
    }
    if size.family == "qwen2_5_vl":
        return text | {"max_window_layers": size.layers, "use_sliding_window": False, "rope_parameters": rotary}
    return text | {"head_dim": size.hidden // size.heads, "rope_parameters": rotary | {"mrope_interleaved": True}}


def _vision(size: TinySize) -> dict[str, Any]:
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.hidden,
        "patch_size": size.patch,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "initializer_range": size.initializer_range,
    }
    if size.family == "qwen2_5_vl":
        return vision | {"window_size": 112, "fullatt_block_indexes": [size.vision_layers - 1]}
    shown = min(max(1, size.vision_layers - 1), size.layers)  # each goes into a layer of the language model of its own
    return vision | {
        "num_position_embeddings": (size.picture // size.patch) ** 2,
        "deepstack_visual_indexes": list(range(shown)),
    }


def save_processor(tokenizer: PreTrainedTokenizerFast, size: TinySize, folder: str | Path) -> None:
    """Write tokenizer and image processor so that `AutoProcessor` and vLLM find them."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    old = size.family == "qwen2_5_vl"
    least, most = size.least_pixels, size.picture**2
    bounds = {"shortest_edge": least, "longest_edge": most}
    images = Qwen2VLImageProcessor(size=bounds, min_pixels=least, max_pixels=most, patch_size=size.patch)
    videos = (Qwen2VLVideoProcessor if old else Qwen3VLVideoProcessor)(size=bounds, patch_size=size.patch)
    processor = (Qwen2_5_VLProcessor if old else Qwen3VLProcessor)(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(folder)


def save_tiny(
    texts: Iterable[str],
    folder: str | Path,
    *,
    tags: Sequence[str] = (),
    size: TinySize | None = None,
    seed: int = 0,
) -> Path:
    """Write a complete random model folder (tokenizer, processor, config, weights) and return it."""
    size = size or TinySize()
    folder = Path(folder)
    tokenizer = build_tokenizer(texts, size.vocabulary, tags)
    build_model(tokenizer, size, seed).save_pretrained(folder)
    save_processor(tokenizer, size, folder)
    return folder


def describe(size: TinySize) -> dict[str, object]:
    """The size as plain values, for manifests."""
    return asdict(size)
