"""The memory that a model takes in training and generation, found without a weight: all tensors are only shapes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM

from minigpt4.common.errors import ConfigError, one_line
from minigpt4.common.schema import LowResource, ModelConfig
from minigpt4.common.types import Batch
from minigpt4.conversation.template import PromptEncoder
from minigpt4.models.attention import attention_of_gpus
from minigpt4.models.llm import recompute_blocks
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.qformer import QFormer
from minigpt4.models.vision import VisionEncoder
from minigpt4.processors.image import normalize

NF4_BLOCK = 64
"""Weights that share a float32 scale in bitsandbytes' 4-bit format (nested quantisation is not used)."""
FLOAT32_BYTES = 4
CPU_LIBRARIES = 0.05
"""What oneDNN, the C library's heap and Python keep beside tensors on a CPU, as a share of these: `python -m
benchmarks.memory` finds 0.04 to 0.06."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one process at the peak of a training step.

    Attributes:
        vision: frozen weights of the vision encoder and the bridge.
        llm: frozen weights of the language model.
        trainable: weights that train, in float32.
        gradients: their gradients, with the buffers of their exchange.
        optimizer: AdamW's two moments.
        saved: activations that the backward pass needs.
        temporary: what is beyond these at the peak: logits, their gradient and the work space of a layer.
        libraries: what libraries keep beside tensors; on a GPU, CUDA's share is not in it.
    """

    vision: int
    llm: int
    trainable: int
    gradients: int
    optimizer: int
    saved: int
    temporary: int
    libraries: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


def empty_model(cfg: ModelConfig, encoder: PromptEncoder, dtype: torch.dtype) -> MiniGPT4:
    """The model with shapes and number formats in place of weights; no file of weights is read or needed.

    Args:
        cfg: section `model` of the configuration.
        encoder: its prompt encoder.
        dtype: number format of the frozen weights.

    Raises:
        ConfigError: The parts cannot be built from these settings.
    """
    try:
        with init_empty_weights():
            config = AutoConfig.from_pretrained(Path(str(cfg.llama_model)))
            llm: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # a damaged config.json can raise anything
        raise ConfigError(
            f"model.llama_model: {cfg.llama_model} holds no usable causal language model: {one_line(error)}"
        ) from error
    with init_empty_weights():
        vision = VisionEncoder(cfg).to(dtype)
        bridge: Any
        if cfg.has_qformer:
            bridge = QFormer(vision.width, cfg.num_query_token, cfg.q_former_args).to(dtype)
            bridge.ln_vision.float()
        else:
            from minigpt4.models.merged_patches import build_merged_patches

            bridge = build_merged_patches(vision, cfg.joined_patches)
        for part in (vision, bridge, llm):
            part.requires_grad_(False).eval()
        adapters = None
        if cfg.lora.r:
            from minigpt4.models.lora import add_lora

            adapters = add_lora(llm, cfg.lora)
        if cfg.recompute_llm:
            recompute_blocks(llm)
        model = MiniGPT4(vision, bridge, llm, encoder, bridge.width, adapters=adapters, projector=cfg.projector)
    side = cfg.image_size  # the statistics that `normalize` keeps for later calls must be real
    normalize(torch.zeros(1, 3, side, side, dtype=torch.uint8), vision.statistics)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model.to_empty(device="cpu")


def frozen_bytes(module: nn.Module, low_resource: LowResource = LowResource.off) -> int:
    """Bytes of a module's frozen weights.

    Quantised are the linear layers except the output layer, as transformers and bitsandbytes do it: to 8 bit with a
    float32 scale for each output, to 4 bit with one for each `NF4_BLOCK` weights.

    Args:
        module: a part of the model.
        low_resource: quantisation of the language model; off for the other parts.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    total = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
    if low_resource is LowResource.off:
        return total
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    for layer in module.modules():
        if not isinstance(layer, nn.Linear) or layer is head or layer.weight.requires_grad:
            continue
        weight = layer.weight
        total -= weight.numel() * weight.element_size()
        if low_resource is LowResource.int8:
            total += weight.numel() + FLOAT32_BYTES * layer.out_features
        else:
            total += -(-weight.numel() // 2) + FLOAT32_BYTES * -(-weight.numel() // NF4_BLOCK)
    return total


def training_memory(
    model: MiniGPT4,
    lengths: Sequence[int],
    targets: Sequence[int],
    *,
    cached: bool = False,
    on_gpu: bool = False,
    world_size: int = 1,
) -> TrainingMemory:
    """Memory of a training step on a batch of samples with one image each.

    The step is computed on tensors without content, as it would be on the device, and every allocation is followed.

    Args:
        model: `empty_model`.
        lengths: tokens of each sample, with its image.
        targets: target tokens of each sample.
        cached: the encoders' output comes from a cache, and they are not loaded.
        on_gpu: attention as GPUs compute it.
        world_size: number of processes; several exchange gradients in buffers (`GradientSum`).
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    saved, peak = _step(model, lengths, targets, cached, on_gpu)
    parts = [] if cached else [model.visual_encoder, model.bridge]
    tensors = TrainingMemory(
        vision=sum(frozen_bytes(part) for part in parts if part is not None),
        llm=frozen_bytes(model.llama_model),
        trainable=trained,
        gradients=trained if world_size == 1 else 2 * trained + -(-trained // world_size),
        optimizer=2 * trained,
        saved=saved,
        temporary=peak - saved,
        libraries=0,
    )
    return tensors if on_gpu else replace(tensors, libraries=round(CPU_LIBRARIES * tensors.total))


def with_quantised_llm(memory: TrainingMemory, llm: nn.Module, low_resource: LowResource) -> TrainingMemory:
    """The memory with the language model's linear layers in 8 or 4 bit; each is converted back while it computes.

    Args:
        memory: that of the model with 16-bit weights.
        llm: its language model.
        low_resource: quantisation; off changes nothing.
    """
    if low_resource is LowResource.off:
        return memory
    layers = [layer.weight for layer in llm.modules() if isinstance(layer, nn.Linear)]
    largest = max(weight.numel() * weight.element_size() for weight in layers)
    return replace(memory, llm=frozen_bytes(llm, low_resource), temporary=memory.temporary + largest)


def kv_cache_bytes(llm: nn.Module, rows: int, tokens: int) -> int:
    """Bytes of the keys and values of `rows` sequences of `tokens` tokens each.

    Args:
        llm: the language model.
        rows: sequences decoded together.
        tokens: tokens of a sequence, prompt and answer.
    """
    config: Any = llm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(llm.parameters()).element_size()
    return 2 * int(config.num_hidden_layers) * int(heads) * int(width) * size * rows * tokens


def planned_batch(lengths: Sequence[int], targets: Sequence[int], image_tokens: int, images: Tensor) -> Batch:
    """A batch of one image a sample, whose numbers mean nothing: only its shapes are used.

    Args:
        lengths: tokens of each sample, with those of its image.
        targets: target tokens of each sample, at its end.
        image_tokens: tokens of an image (Q), at the beginning.
        images: images, (B, 3, S, S), or cached features.
    """
    rows, width = len(lengths), max(lengths)
    starts = [sum(lengths[:row]) for row in range(rows)]
    at_targets = [start + length - 1 - n for start, length, n in zip(starts, lengths, targets, strict=True)]
    return Batch(
        image_ids=[str(row) for row in range(rows)],
        images=images,
        input_ids=torch.zeros(rows, width, dtype=torch.long),
        labels=torch.zeros(rows, width, dtype=torch.long),
        lengths=list(lengths),
        num_targets=sum(targets),
        image_positions=torch.cat([torch.arange(image_tokens) + row * width + 1 for row in range(rows)]),
        token_positions=torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)]),
        target_positions=torch.cat([torch.arange(n) + at for n, at in zip(targets, at_targets, strict=True)]),
        target_columns=torch.arange(max(targets)) + width - 1 - max(targets),
        skipped=[],
    )


class Allocations(TorchDispatchMode):
    """Follows the bytes of all tensors that are made within it.

    Attributes:
        now: bytes that are in use.
        peak: most bytes that were in use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(tensor.untyped_storage()) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _step(
    model: MiniGPT4, lengths: Sequence[int], targets: Sequence[int], cached: bool, on_gpu: bool
) -> tuple[int, int]:
    """Bytes that are kept for the backward pass, and the peak, both beside weights and gradients."""
    mode: FakeTensorMode = next(model.parameters()).fake_mode  # type: ignore[attr-defined]
    with attention_of_gpus(on_gpu), mode, Allocations() as allocations:
        size, queries = model.visual_encoder.image_size, model.encoder.num_image_tokens  # type: ignore[union-attr]
        shape = (len(lengths), queries, model.query_width) if cached else (len(lengths), 3, size, size)
        images = torch.empty(shape, dtype=torch.float16 if cached else torch.uint8)
        loss = model.train()(planned_batch(lengths, targets, queries, images))
        saved = allocations.now
        loss.backward()
        model.zero_grad()
        return saved, allocations.peak
