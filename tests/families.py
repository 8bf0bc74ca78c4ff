"""Small random vision encoders and language models of the families that people pair, in the layouts they come in.

The folders are as the hub has them: a backbone's with timm's `config.json`, a language model's with its kind of
tokenizer, its chat template written in its family's form, and its settings for generation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from minigpt4.common.files import asset

WIDTH, DEPTH = 32, 3


@dataclass(frozen=True)
class Backbone:
    """A family of vision encoders.

    Attributes:
        name: a backbone of it in timm, with a tag.
        native_size: side of the images that the small weights are made for.
        image_size: side of the images that the model is given.
        tokens: features of an image without a Q-Former.
        options: sizes of the small backbone, as in `model.vit_args`.
        settings: further settings of `model` that users of the family choose.
    """

    name: str
    native_size: int
    image_size: int
    tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, **changes: Any) -> Any:
        """A small backbone of timm, with its final norm and pooling; the same at each call."""
        torch.manual_seed(0)
        return timm.create_model(self.name, img_size=self.native_size, depth=DEPTH, **self.options | changes)

    def write(self, folder: Path) -> Path:
        """Weights and `config.json` as timm publishes them."""
        backbone = self.make()
        folder.mkdir(parents=True)
        save_file(backbone.state_dict(), folder / "model.safetensors")
        cfg = {key: backbone.pretrained_cfg[key] for key in ("mean", "std", "input_size", "tag")}
        described = {"architecture": self.name.partition(".")[0], "num_features": WIDTH, "pretrained_cfg": cfg}
        described["model_args"] = self.options | {"depth": DEPTH, "img_size": self.native_size}
        (folder / "config.json").write_text(json.dumps(described))
        return folder

    def model_settings(self, folder: Path) -> dict[str, Any]:
        """Section `model` of a configuration with the weights in `folder`."""
        return {
            "vit_model": self.name,
            "vit_weights": str(folder),
            "vit_blocks": DEPTH,
            "vit_args": self.options,
            "image_size": self.image_size,
            "has_qformer": False,
        } | self.settings


_SMALL = {"embed_dim": WIDTH, "num_heads": 4}
BACKBONES = {
    "EVA": Backbone("eva_giant_patch14_224.clip_ft_in1k", 28, 56, 4, _SMALL | {"mlp_ratio": 2.0}),
    "SigLIP": Backbone(
        "vit_base_patch16_siglip_224.webli",
        32,
        32,
        4,
        _SMALL,
        # The sizes stand in config.json.
        {"vit_feature_layer": "penultimate", "joined_patches": 1, "vit_args": {}, "vit_blocks": None},
    ),
    "CLIP": Backbone(
        "vit_base_patch16_clip_quickgelu_224.openai",
        32,
        32,
        5,
        _SMALL,
        {"vit_feature_layer": "2", "joined_patches": 1, "vit_class_token": "keep", "projector": "mlp"},
    ),
    "DINOv2": Backbone("vit_small_patch14_reg4_dinov2.lvd142m", 56, 28, 1, _SMALL, {"projector": "mlp"}),
}


@dataclass(frozen=True)
class LanguageModel:
    """A family of language models.

    Attributes:
        kind: model type of transformers.
        tokenizer: writes its tokenizer into a folder and returns the number of tokens.
        options: further fields of its configuration.
        ends: texts of the tokens in its settings for generation.
    """

    kind: str
    tokenizer: Callable[[Path], int]
    options: dict[str, Any] = field(default_factory=dict)
    ends: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """The folder of a small random one; the same at each call."""
        folder.mkdir(parents=True)
        tokens = self.tokenizer(folder)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "vocab_size": tokens}
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, initializer_range=0.1, **sizes | self.options)
        llm = AutoModelForCausalLM.from_config(config)
        if self.ends:
            ids = PreTrainedTokenizerFast.from_pretrained(folder).convert_tokens_to_ids(list(self.ends))
            llm.generation_config = GenerationConfig(eos_token_id=ids)
        llm.save_pretrained(folder)
        return folder


def _save(folder: Path, tokenizer: Tokenizer, template: str, special: dict[str, str | None], *others: str) -> int:
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in (*filter(None, special.values()), *others)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, additional_special_tokens=list(others))
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def _bytes() -> Tokenizer:
    """A token for each byte, as the byte-level tokenizers of Qwen and SmolLM fall back to."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _letters(front: bool) -> Tokenizer:
    """A token for each letter, with spaces as in sentencepiece; `front`: each text begins with one."""
    texts = ["<unk>", *(f"<0x{number:02X}>" for number in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    marks = [normalizers.Prepend("▁")] if front else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    stripped = [decoders.Strip(" ", 1, 0)] if front else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    return tokenizer


_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + _TURNS + _ASKS
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)


def _llama(folder: Path) -> int:
    """The tiny model's sentencepiece file, and a template as LLaMA-2's in place of its own."""
    source = Path(asset("tiny/llama"))
    (folder / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "chat_template": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(json.loads((source / "config.json").read_text())["vocab_size"])


def _mistral(folder: Path) -> int:
    return _save(folder, _letters(front=True), MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}, "[INST]", "[/INST]")


def _qwen(folder: Path) -> int:
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return _save(folder, _bytes(), THINKING, special, "<|im_start|>")


def _gemma(folder: Path) -> int:
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return _save(folder, _letters(front=False), GEMMA, special, "<start_of_turn>", "<end_of_turn>")


def _smollm(folder: Path) -> int:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return _save(folder, _bytes(), CHATML, special)


_TIED = {"tie_word_embeddings": True}
LANGUAGE_MODELS = {
    "LLaMA": LanguageModel("llama", _llama),
    "Mistral": LanguageModel("mistral", _mistral),
    "Qwen3": LanguageModel("qwen3", _qwen, _TIED, ("<|im_end|>", "<|endoftext|>")),
    "Gemma 3": LanguageModel(
        "gemma3_text",
        _gemma,
        _TIED
        | {"query_pre_attn_scalar": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        ("<eos>", "<end_of_turn>"),
    ),
    "SmolLM2": LanguageModel("llama", _smollm, _TIED),
}
