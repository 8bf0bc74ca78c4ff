"""A model with a Q-Former as transformers' `Blip2ForConditionalGeneration`: what fits, its configuration, its tensors.

The two compute the same, but for one number: the norm behind the tower has the tower's epsilon there, and its own here
(`LN_VISION_EPS`). That changes a token's features by (1e-5 - 1e-6) / (2 * its variance), relatively.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minigpt4.common.errors import ExportError, first_few
from minigpt4.export.fit import INSTEAD
from minigpt4.export.folder import LazyTensor

if TYPE_CHECKING:
    from minigpt4.models.minigpt4 import MiniGPT4

_TOWER_NAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"encoder.layers.\1.mlp.fc\2.\3"),
)
"""timm's names and those of `Blip2VisionModel`; the biases of EVA's queries and values, which are joined, apart."""
_SEPARATE_BIAS = re.compile(r"blocks\.(\d+)\.attn\.[qv]_bias")


def blip2_config(model: MiniGPT4, image_id: int) -> Any:
    """The `Blip2Config` of the same model.

    Args:
        model: the model.
        image_id: token that stands for each of an image's queries.

    Raises:
        ExportError: The vision tower or the language model is of a kind that does not fit; the message says why.
    """
    from transformers import CONFIG_MAPPING, Blip2Config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert model.visual_encoder is not None
    bridge: Any = model.bridge
    llm: Any = model.llama_model
    language: dict[str, Any] = llm.config.to_dict()
    kind = language.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING or "vocab_size" not in language:
        raise ExportError(f"model.llama_model: Blip2ForConditionalGeneration takes no language model of type {kind!r}")
    language["vocab_size"] = max(model.token_embedding.weight.shape[0], image_id + 1)
    for own in ("_name_or_path", "transformers_version"):
        language.pop(own, None)
    config: Any = Blip2Config(
        vision_config=_tower_config(model.visual_encoder.backbone, model.visual_encoder.image_size),
        qformer_config=bridge.bert.config.to_dict(),
        text_config=language,
        num_query_tokens=model.encoder.num_image_tokens,
        image_token_index=image_id,
    )
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.tie_word_embeddings = bool(language.get("tie_word_embeddings"))
    config.dtype = next(llm.parameters()).dtype
    return config


def _tower_config(backbone: Any, image_size: int) -> dict[str, Any]:
    """The fields of `Blip2VisionConfig`; what differs without having weights is refused here, the rest by its weights.

    Raises:
        ExportError: The tower computes something else.
    """
    from timm.models.eva import Eva, EvaBlock
    from timm.models.vision_transformer import Block, VisionTransformer

    def refuse(what: str) -> ExportError:
        kind = type(backbone).__name__
        return ExportError(f"model.vit_model: {kind} has {what}, Blip2VisionModel has not; {INSTEAD}")

    if type(backbone) not in (Eva, VisionTransformer):
        raise ExportError(
            f"model.vit_model: Blip2VisionModel is a plain vision transformer, not a {type(backbone).__name__}; "
            f"{INSTEAD}"
        )
    blocks = list(backbone.blocks)
    norms = {norm.eps for block in blocks for norm in (block.norm1, block.norm2)}
    if any(type(block) not in (EvaBlock, Block) for block in blocks):
        raise refuse(f"blocks of the kind {type(blocks[0]).__name__}")
    if getattr(backbone, "rope", None) is not None:
        raise refuse("rotary positions")
    if any(not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none" for block in blocks):
        raise refuse(f"the activation {type(blocks[0].mlp.act).__name__}")
    if len(norms) != 1:
        raise refuse("norms with several epsilons")
    return {
        "hidden_size": backbone.embed_dim,
        "intermediate_size": blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": image_size,
        "patch_size": backbone.patch_embed.patch_size[0],
        "layer_norm_eps": norms.pop(),
        "qkv_bias": any("bias" in name for name in blocks[0].attn.state_dict() if not name.startswith("proj.")),
        "hidden_act": "gelu",
    }


def blip2_tensors(model: MiniGPT4, config: Any) -> dict[str, LazyTensor]:
    """The tensors of the export by transformers' names, in the number formats of their files.

    Matrices with adapters are merged when they are written, and become float32: in half precision the sum would lose
    what training added.

    Args:
        model: the model; its weights may be mapped from files.
        config: from `blip2_config`.

    Raises:
        ExportError: They are not those that the class has.
    """
    assert model.visual_encoder is not None
    bridge: Any = model.bridge
    parts = {f"vision_model.{name}": part for name, part in _tower_tensors(model.visual_encoder.backbone)}
    parts |= {
        f"vision_model.post_layernorm.{name}": LazyTensor.of(tensor)
        for name, tensor in bridge.ln_vision.state_dict().items()
    }
    parts["query_tokens"] = LazyTensor.of(bridge.query_tokens)
    parts |= {f"qformer.{name}": LazyTensor.of(tensor) for name, tensor in bridge.bert.state_dict().items()}
    parts |= {
        f"language_projection.{name}": LazyTensor.of(tensor) for name, tensor in model.llama_proj.state_dict().items()
    }
    language = _language_tensors(model.llama_model, config.text_config.vocab_size)
    parts |= {f"language_model.{name}": part for name, part in language.items()}
    _compare(parts, config)
    return parts


def _tower_tensors(backbone: nn.Module) -> Iterator[tuple[str, LazyTensor]]:
    """timm's tensors renamed; names without a counterpart stay, and are refused by `_compare`."""
    state: Mapping[str, Tensor] = backbone.state_dict()
    for name, tensor in state.items():
        if separate := _SEPARATE_BIAS.fullmatch(name):
            if name.endswith(".q_bias"):
                attention = name.removesuffix("q_bias")
                query, value = state[attention + "q_bias"], state[attention + "v_bias"]
                joined = partial(torch.cat, [query, torch.zeros_like(query), value])
                shape = (3 * query.shape[0],)
                yield f"encoder.layers.{separate[1]}.self_attn.qkv.bias", LazyTensor(shape, query.dtype, joined)
            continue
        for pattern, theirs in _TOWER_NAMES:
            if found := re.fullmatch(pattern, name):
                yield found.expand(theirs), LazyTensor.of(tensor)
                break
        else:
            yield name, LazyTensor.of(tensor)


def _language_tensors(llm: Any, vocabulary: int) -> dict[str, LazyTensor]:
    """The language model's tensors with its adapters merged and its vocabulary extended.

    A new row is a copy of row 0: of two equal logits greedy decoding takes the first, so it is never generated.
    """
    layers: Mapping[str, Any] = {}
    if hasattr(llm, "peft_config"):
        from minigpt4.models.lora import lora_layers, merged_weight

        layers = lora_layers(llm)
    tied = llm.get_output_embeddings() if llm.config.tie_word_embeddings else None
    embeddings = (llm.get_input_embeddings(), llm.get_output_embeddings())
    rows = {id(tensor) for part in embeddings for tensor in part.parameters()}
    parts = {}
    for name, tensor in llm.state_dict(keep_vars=True).items():
        module, _, kind = name.rpartition(".")
        if ".lora_" in name or (tied is not None and llm.get_submodule(module) is tied and kind == "weight"):
            continue
        layer = layers.get(module.removesuffix(".base_layer"))
        missing = vocabulary - tensor.shape[0] if id(tensor) in rows else 0
        if layer is not None and kind == "weight":
            part = LazyTensor(tuple(tensor.shape), torch.float32, partial(merged_weight, layer))
        elif missing > 0:
            part = LazyTensor((vocabulary, *tensor.shape[1:]), tensor.dtype, partial(_extended, tensor, missing))
        else:
            part = LazyTensor.of(tensor)
        parts[name.replace(".base_layer.", ".")] = part
    return parts


def _extended(tensor: Tensor, rows: int) -> Tensor:
    first = tensor.detach()[:1]
    return torch.cat([tensor.detach(), first.expand(rows, *first.shape[1:])])


def _compare(parts: Mapping[str, LazyTensor], config: Any) -> None:
    """Refuse tensors that are not exactly those of the class.

    Raises:
        ExportError: Names or shapes differ.
    """
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        state = Blip2ForConditionalGeneration(config).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tied = {"language_model.lm_head.weight"} if config.text_config.tie_word_embeddings else set()
    lacking = [name for name in wanted if name not in parts and name not in tied]
    surplus = [name for name in parts if name not in wanted]
    shapes = [
        f"{name} {parts[name].shape} instead of {wanted[name]}"
        for name in parts
        if name in wanted and parts[name].shape != wanted[name]
    ]
    found = {"has no": lacking, "has besides": surplus, "has": shapes}
    if wrong := "; ".join(f"{how} {first_few(names, 3)}" for how, names in found.items() if names):
        raise ExportError(f"the model is no Blip2ForConditionalGeneration: it {wrong}; {INSTEAD}")
