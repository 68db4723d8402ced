"""Make a small, real Qwen2.5-VL from nothing: tokenizer, processor and random weights in Hugging Face format.

It is the architecture of the 7B model with smaller numbers, so that vLLM and transformers load it as they load the
real one. The embedded base model starts here, and so do the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

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
    """Numbers of a small Qwen2.5-VL. The defaults make 1.5 M parameters and 16 tokens of a 112 x 112 picture."""

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


def build_model(tokenizer: PreTrainedTokenizerFast, size: TinySize, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random float32 weights for this tokenizer."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token_id(token: str) -> int:
        return int(tokenizer.get_vocab()[token])

    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_positions,
        "max_window_layers": size.layers,
        "use_sliding_window": False,
        "initializer_range": size.initializer_range,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": list(size.mrope_section),
        },
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id(TURN_END),
        "pad_token_id": token_id(END_OF_TEXT),
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [size.vision_layers - 1],
        "initializer_range": size.initializer_range,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        # what is copied from the input is then said in the same direction for all tokens at once: sooner learned
        model.lm_head.weight.copy_(model.model.language_model.embed_tokens.weight)
        for parameter in model.model.visual.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(size.vision_gain)
    return model


def save_processor(tokenizer: PreTrainedTokenizerFast, size: TinySize, folder: str | Path) -> None:
    """Write tokenizer and image processor so that `AutoProcessor` and vLLM find them."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    pixels = size.picture * size.picture
    bounds = {"shortest_edge": 56 * 56, "longest_edge": pixels}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=bounds, min_pixels=56 * 56, max_pixels=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=bounds),
        chat_template=CHAT_TEMPLATE,
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
