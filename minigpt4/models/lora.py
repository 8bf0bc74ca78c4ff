"""Low-rank adapters in the language model (LoRA, arXiv:2106.09685), put in by peft and trained with the projection."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from minigpt4.common.errors import ConfigError, did_you_mean, one_line
from minigpt4.common.schema import QUERY_VALUE, LoraConfig

logger = logging.getLogger(__name__)

OWN, PUBLISHED = "llama_model.", "llama_model.base_model.model."
"""What the names of the language model's parameters begin with in the model, and in published checkpoints."""
JOINED_PROJECTIONS = ("qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn")
"""Layers that make queries, keys and values at once, as Phi, GPT-NeoX and others have them."""
ADAPTER = "default"
"""peft's name of the only adapter of each layer; published names do not have it."""


class Adapters:
    """The adapters of a language model, whose modules hold them.

    They are in float32 whatever the number format of the frozen weights, and without effect until they are trained or
    loaded.

    Args:
        llm: language model with adapters.
        settings: what they were made with.

    Attributes:
        names: names of their parameters in `MiniGPT4` -> published names.
    """

    def __init__(self, llm: nn.Module, settings: LoraConfig) -> None:
        self.llm = llm
        self.settings = settings
        trained = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
        self.names = {OWN + name: PUBLISHED + name.replace(f".{ADAPTER}.", ".") for name in trained}

    def train(self, mode: bool) -> None:
        """Turn their dropout on or off; the frozen layers that they belong to stay as they are."""
        for layer in lora_layers(self.llm).values():
            layer.lora_dropout.train(mode)

    @torch.no_grad()
    def reset(self) -> None:
        """Make them without effect again."""
        for layer in lora_layers(self.llm).values():
            layer.lora_B[ADAPTER].weight.zero_()

    def twin(self) -> Adapters:
        """Adapters of their own in a second language model, which shares every frozen module with this one."""
        shared: dict[int, Any] = {id(module): module for module in self.llm.modules() if not _trained(module)}
        shared |= {id(weight): weight for weight in self.llm.parameters() if not weight.requires_grad}
        return Adapters(copy.deepcopy(self.llm, shared), self.settings)

    def metadata(self) -> dict[str, str]:
        """What a checkpoint records of them, by the keys of the settings."""
        return {
            "lora.r": str(self.settings.r),
            "lora.alpha": str(self.settings.alpha),
            "lora.targets": ", ".join(sorted(self.settings.targets)),
        }


def add_lora(llm: Any, settings: LoraConfig) -> Adapters:
    """Put new adapters into a frozen language model, which may be quantised; its class stays.

    Args:
        llm: causal language model of transformers.
        settings: rank and place of the adapters.

    Raises:
        ConfigError: The decoder has no linear layers of a name in `targets`, or peft knows no adapter for them.
    """
    linear = {name.rpartition(".")[2] for name, module in llm.get_decoder().named_modules() if _is_linear(module)}
    settings = replace(settings, targets=_present(settings.targets, linear))
    for target in settings.targets:
        if target not in linear:
            raise ConfigError(
                f"model.lora.targets: the language model's decoder has no linear layers '{target}'; "
                f"{did_you_mean(target, linear)}"
            )
    config = PeftConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, llm, ADAPTER)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"model.lora: peft cannot put adapters into this language model: {one_line(error)}"
        ) from error
    for parameter in llm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    llm.eval()
    return Adapters(llm, settings)


def _present(targets: list[str], linear: Collection[str]) -> list[str]:
    """The default targets where the decoder has other layers for them, or else `targets` as they are.

    Args:
        targets: names of layers.
        linear: names of the decoder's linear layers.
    """
    joined = [name for name in JOINED_PROJECTIONS if name in linear]
    if tuple(targets) != QUERY_VALUE or set(targets) & set(linear) or not joined:
        return targets
    logger.info(
        "model.lora.targets: this language model makes queries and values by %s, which has the adapters", joined
    )
    return joined


def lora_layers(llm: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    return {name: module for name, module in llm.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merge_lora(llm: nn.Module) -> None:
    """Add the adapters to the weights that they belong to, in float32, and take them out; in place.

    Args:
        llm: language model with adapters, not quantised.
    """
    for name, layer in lora_layers(llm).items():
        base = layer.get_base_layer()
        merged = merged_weight(layer).to(base.weight.dtype)
        base.weight = nn.Parameter(merged, requires_grad=False)  # the old one may be mapped
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, base)
    del llm.peft_config


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """The weight of a layer that is not quantised with its adapter added, float32."""
    weight: Tensor = layer.get_base_layer().weight.float() + layer.get_delta_weight(ADAPTER).float()
    return weight


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
