"""The frozen language model: loading, quantisation, sharding (FSDP2), recomputation and compilation."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import CheckpointError, ConfigError, first_few, one_line
from minigpt4.common.schema import LlmSharding, LowResource
from minigpt4.models.attention import attention_in_recomputation
from minigpt4.models.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)
# bitsandbytes warns of an optional package whenever it is imported, also by what needs no 4-bit weights.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def build_llm(folder: Path, low_resource: LowResource, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """The language model in `folder`, frozen and in eval mode, loaded straight onto this process's device.

    Args:
        folder: its configuration and weights (safetensors or .bin shards).
        low_resource: quantise the linear layers to 8 or 4 bit by bitsandbytes.
        dtype: number format of weights that are not quantised; None: that of the files.
        device: device of the weights.

    Raises:
        ConfigError: The folder holds no causal language model, or bitsandbytes is missing.
        CheckpointError: The weights cannot be read, are incomplete or have other shapes.
    """
    options: dict[str, Any] = {"dtype": dtype or "auto", "device_map": {"": device}}
    if low_resource is not LowResource.off:
        assert dtype is not None
        options["quantization_config"] = _quantisation(low_resource, dtype)
    try:
        config = AutoConfig.from_pretrained(folder)
        if dtype is None:
            config.dtype = None  # the configuration's format may differ from that of the files
        with _no_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, output_loading_info=True, **options
            )
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"model.llama_model: the weights in {folder} cannot be read: {one_line(error)}"
        ) from error
    except Exception as error:  # a damaged config.json can raise anything
        raise ConfigError(
            f"model.llama_model: {folder} holds no usable causal language model: {one_line(error)}"
        ) from error
    llm, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        names = [str(name) for name in [*report["missing_keys"], *report["mismatched_keys"]]]
        raise CheckpointError(
            f"model.llama_model: {len(names)} weights are missing in {folder} or have another shape "
            f"({first_few(sorted(names), 3)}); copy the folder again, with every shard"
        )
    assert isinstance(llm, nn.Module)
    return llm.requires_grad_(False).eval()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' bars from between the lines of a log."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _quantisation(low_resource: LowResource, dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"model.low_resource: {low_resource.value} needs bitsandbytes; pip install -c constraints.txt -e '.[quant]'"
        ) from error
    if low_resource is LowResource.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def shards_llm(sharding: LlmSharding, low_resource: LowResource, processes: Processes) -> bool:
    """Whether the language model is to be sharded.

    Args:
        sharding: `run.shard_llm`.
        low_resource: `model.low_resource`.
        processes: ranks of the run.

    Raises:
        ConfigError: The weights are quantised.
    """
    if sharding is LlmSharding.off:
        return False
    if low_resource is not LowResource.off:
        raise ConfigError(
            f"run.shard_llm: {sharding.value} does not work with model.low_resource={low_resource.value}: "
            "quantised weights cannot be sharded; set one of the two to off"
        )
    if _shard_ranks(sharding, processes) == 1:
        logger.warning(
            "run.shard_llm: %s, but there is only one process to shard over; it holds all weights", sharding.value
        )
        return False
    return True


def shard_llm(model: MiniGPT4, dtype: torch.dtype, sharding: LlmSharding, processes: Processes) -> None:
    """Shard the frozen weights of the language model over the ranks, in place.

    Trainable ones, inside it or not, stay whole and move to this rank's device. The frozen ones may still be on the
    CPU, best mapped from their files: no rank ever copies more than one complete block of them.

    Args:
        model: the model.
        dtype: number format of the sharded weights.
        sharding: node or all.
        processes: ranks of the run.
    """
    llm, mesh = model.llama_model, _device_mesh(sharding, processes)
    # No set of the sharded ones, which would keep every complete block in memory.
    whole = set(model.parameters()) - {parameter for parameter in llm.parameters() if not parameter.requires_grad}
    for parameter in whole:
        parameter.data = parameter.data.to(processes.device)
    for stack in block_stacks(llm):
        for block in stack:
            _cast(block, whole, dtype)
            fully_shard(block, mesh=mesh, ignored_params=whole)
    _cast(llm, whole, dtype)
    # MiniGPT4 is the root, because token embeddings are looked up outside the language model's own forward.
    fully_shard(model, mesh=mesh, ignored_params=whole)
    logger.info("each process holds 1/%d of the language model's weights", _shard_ranks(sharding, processes))


def _shard_ranks(sharding: LlmSharding, processes: Processes) -> int:
    """Ranks that hold one copy of the language model together."""
    if sharding is LlmSharding.all:
        return processes.world_size
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _device_mesh(sharding: LlmSharding, processes: Processes) -> DeviceMesh:
    """The ranks as a grid: (copies, shards), or (shards,) for a single copy."""
    shards = _shard_ranks(sharding, processes)
    kind = processes.device.type
    if shards == processes.world_size:
        return init_device_mesh(kind, (shards,), mesh_dim_names=("shard",))
    if set(processes.gather(shards)) != {shards}:
        raise ConfigError("run.shard_llm: node needs as many processes on each machine; use all")
    return init_device_mesh(kind, (processes.world_size // shards, shards), mesh_dim_names=("copy", "shard"))


def _cast(module: nn.Module, kept: Collection[nn.Parameter], dtype: torch.dtype) -> None:
    """Convert parameters only, but for those kept: buffers such as the rotary frequencies stay in float32."""
    for parameter in module.parameters():
        if parameter not in kept and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def recompute_blocks(llm: nn.Module) -> None:
    """Let the blocks keep only their inputs for the backward pass, which computes the rest again.

    transformers' `activation_checkpointing_enable` does so in train mode only, in which the dropout of frozen blocks is
    alive, and knows nothing of a `Layout`.

    Args:
        llm: language model; its blocks change in place.
    """
    for stack in block_stacks(llm):
        for block in stack:
            block.forward = partial(_recomputed, block.forward, llm)


def _recomputed(forward: Callable[..., Any], llm: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(attention_in_recomputation, llm)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def compile_blocks(*modules: nn.Module | None) -> None:
    """Let torch compile the repeated blocks of each module on their first call.

    Sizes are compiled as variables, so that batches of other lengths do not compile again; attention over packed
    samples is not compiled.

    Args:
        modules: each holds its blocks in a ModuleList; None is skipped.
    """
    logger.info("model.compile: the blocks are compiled when first used, which can take minutes")
    for module in modules:
        for stack in [] if module is None else block_stacks(module):
            for block in stack:
                block.compile(dynamic=True)


def block_stacks(module: nn.Module) -> list[nn.ModuleList]:
    """The outermost ModuleLists of a module: its stacks of repeated blocks."""
    if isinstance(module, nn.ModuleList):
        return [module]
    return [stack for child in module.children() for stack in block_stacks(child)]
