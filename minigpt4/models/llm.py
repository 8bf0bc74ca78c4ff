"""The frozen language model: any causal LM in Hugging Face's layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.fingerprint import INDEX
from minigpt4.common.schema import LowResource

logger = logging.getLogger(__name__)


def build_llm(folder: Path, low_resource: LowResource, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """The language model in `folder`, frozen and in eval mode, loaded straight onto this process's device.

    Args:
        folder: Config and weights (safetensors or .bin shards).
        low_resource: Quantise the linear layers to 8 or 4 bit by bitsandbytes.
        dtype: Number format of what is not quantised; None: that of the files.
        device: Where it goes.

    Raises:
        ConfigError: The folder holds no causal language model, or bitsandbytes is needed and missing.
        CheckpointError: Its weights cannot be read, or do not fill the model.
    """
    converted = any((folder / name).exists() for name in ("model.safetensors", INDEX))
    if not converted and any(folder.glob("pytorch_model*.bin")):
        logger.info(
            "%s holds .bin weights only; they load faster once converted: python -m minigpt4.models.convert_llm %s",
            folder,
            folder,
        )
    options: dict[str, Any] = {"dtype": dtype or "auto", "device_map": {"": device}}
    if low_resource is not LowResource.off:
        assert dtype is not None
        options["quantization_config"] = _quantisation(low_resource, dtype)
    try:
        config = AutoConfig.from_pretrained(folder)
        if dtype is None:
            config.dtype = None  # what the configuration says need not be what the files hold
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.llama_model: {folder} holds no usable causal language model: {error}") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"model.llama_model: the weights in {folder} cannot be read: {error}") from error
    llm, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        names = [str(name) for name in [*report["missing_keys"], *report["mismatched_keys"]]]
        raise CheckpointError(
            f"model.llama_model: {len(names)} weights are missing in {folder} or have another shape "
            f"({', '.join(sorted(names)[:3])}); copy the folder again, with every shard"
        )
    llm.requires_grad_(False)
    llm.eval()
    assert isinstance(llm, nn.Module)
    return llm


def _quantisation(low_resource: LowResource, dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"model.low_resource: {low_resource.value} needs bitsandbytes; pip install 'minigpt4[quant]'"
        ) from error
    if low_resource is LowResource.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
