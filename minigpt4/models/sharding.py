"""The frozen language model divided among processes (FSDP2), for one that does not fit on a card.

torch's `fully_shard` is used directly: accelerate's `prepare` would divide the projection as well, which is small, is
trained by DDP either way, and so leaves the same checkpoints. Of the language model each process holds its part of
every matrix; a block is put together when it computes, forward and backward, and taken apart again.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from minigpt4.common.dist import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import Config, LlmSharding, LowResource
from minigpt4.models.compiling import block_stacks
from minigpt4.models.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)


def shards_llm(cfg: Config, processes: Processes) -> bool:
    """Whether the language model is to be divided.

    Raises:
        ConfigError: It cannot be, as configured.
    """
    sharding = cfg.run.shard_llm
    if sharding is LlmSharding.off:
        return False
    if cfg.model.low_resource is not LowResource.off:
        raise ConfigError(
            f"run.shard_llm: {sharding.value} does not go with model.low_resource={cfg.model.low_resource.value}: "
            "quantised weights cannot be divided; set one of the two to off"
        )
    if _sharers(sharding, processes) == 1:
        logger.warning("run.shard_llm: %s, but one process has nobody to share with: it holds all", sharding.value)
        return False
    return True


def shard_llm(model: MiniGPT4, dtype: torch.dtype, sharding: LlmSharding, processes: Processes) -> None:
    """Divide the language model, in place; everything else moves to this process's device whole.

    Until now its weights may be on the CPU, best mapped from their files: no more than one block of them is ever copied
    whole by a process.

    Args:
        model: Its projection not yet wrapped.
        dtype: Number format of the language model's weights from now on.
        sharding: node or all.
        processes: Of the run.
    """
    llm, mesh = model.llama_model, _mesh(sharding, processes)
    model.llama_proj.to(processes.device)
    for stack in block_stacks(llm):
        for block in stack:
            _cast(block, dtype)
            fully_shard(block, mesh=mesh)
    _cast(llm, dtype)
    own = set(llm.parameters())
    # The whole model is the root, because token embeddings are looked up outside the language model's own forward.
    fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if p not in own})
    logger.info("each process holds 1/%d of the language model's weights", _sharers(sharding, processes))


def _sharers(sharding: LlmSharding, processes: Processes) -> int:
    """Processes that hold the language model together."""
    if sharding is LlmSharding.all:
        return processes.world_size
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _mesh(sharding: LlmSharding, processes: Processes) -> DeviceMesh:
    """The processes as a grid: (copies, sharers), or (sharers,) where there is one copy."""
    sharers = _sharers(sharding, processes)
    kind = processes.device.type
    if sharers == processes.world_size:
        return init_device_mesh(kind, (sharers,), mesh_dim_names=("shard",))
    if set(processes.gather(sharers)) != {sharers}:
        raise ConfigError("run.shard_llm: node needs as many processes on each machine; use all")
    return init_device_mesh(kind, (processes.world_size // sharers, sharers), mesh_dim_names=("copy", "shard"))


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: buffers such as the rotary frequencies stay in float32."""
    for parameter in module.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
