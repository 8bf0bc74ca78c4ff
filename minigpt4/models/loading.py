"""Configuration -> a model with its weights, in number formats that the device computes natively."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from minigpt4.common.checkpoint import (
    RANDOM_SEED,
    USUAL_NAMES,
    fingerprint,
    frozen_identity,
    read_checkpoint,
    read_projection,
    weights_file,
)
from minigpt4.common.errors import CheckpointError, ConfigError, DataError
from minigpt4.common.files import language_model_folder, read_json, require_path
from minigpt4.common.logging import duration
from minigpt4.common.registry import models
from minigpt4.common.schema import JOINED_PATCHES, LoraConfig, LowResource, ModelConfig, Precision
from minigpt4.conversation.template import STAGE1_PATTERN, PromptEncoder, configured_template
from minigpt4.conversation.tokenizer import check_vocabulary, load_tokenizer
from minigpt4.models.llm import build_llm, compile_blocks, recompute_blocks
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.qformer import build_qformer, query_width
from minigpt4.models.vision import VisionEncoder, build_vision_encoder, empty_vision_encoder, image_statistics
from minigpt4.processors.image import CLIP

if TYPE_CHECKING:
    from minigpt4.models.lora import Adapters
    from minigpt4.models.minigpt4 import Bridge

logger = logging.getLogger(__name__)

DTYPES = {
    Precision.float32: torch.float32,
    Precision.bfloat16: torch.bfloat16,
    Precision.float16: torch.float16,
}
QUANTISED = (LowResource.int8, LowResource.nf4)
BASE_FILES = ("vit_weights", "q_former_model", "llama_model")
"""Frozen parts that a checkpoint knows by fingerprint; what else it records of them are sizes."""


def build_model(
    cfg: ModelConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    with_encoders: bool = True,
    keep_llm_on_cpu: bool = False,
) -> MiniGPT4:
    """The model of the configured architecture with its frozen weights and the projection of `model.ckpt`, if any.

    Every path is checked before the first large file is read.

    Args:
        cfg: the `model` section of the configuration.
        device: device of the model.
        dtype: number format of the frozen weights; None: that of their files, which stay mapped.
        with_encoders: load the vision encoder and the bridge; not needed where all features are cached.
        keep_llm_on_cpu: leave the language model on the CPU and in its files' number format, for `shard_llm`.

    Returns:
        The model in eval mode.

    Raises:
        ConfigError: An unknown architecture, a path that is not set or does not exist, or a tokenizer that does not
            belong to the language model.
        CheckpointError: A file that cannot be read or does not fit.
    """
    architecture: type[MiniGPT4] = models.get(cfg.arch)
    llm_folder = language_model_folder(cfg.llama_model, "model.llama_model")
    for key, path in (*cfg.image_encoder_files().items(), ("ckpt", cfg.ckpt)):
        if path:
            require_path(path, f"model.{key}", folder=key == "vit_weights" and os.path.isdir(path))
    if cfg.ckpt:
        read_checkpoint(cfg.ckpt)  # a broken file is found now, not after minutes of loading the others
    encoder = build_prompt_encoder(cfg)
    if not keep_llm_on_cpu and dtype is not None:  # otherwise a share of it would be needed only, or nothing
        check_memory(cfg, dtype, device, with_encoders=with_encoders)
    vision, bridge = None, None
    began = time.monotonic()
    logger.info("loading %s%s", f"{cfg.vit_weights or cfg.vit_model}, " if with_encoders else "", llm_folder)
    if with_encoders:
        vision, bridge = build_image_encoders(cfg, device, dtype)
    else:
        _check_encoder_weights(cfg)
    llm_dtype, llm_device = (None, torch.device("cpu")) if keep_llm_on_cpu else (dtype, device)
    llm = build_llm(llm_folder, cfg.low_resource, llm_dtype, llm_device)
    adapters = _build_adapters(llm, cfg.lora)
    if cfg.recompute_llm:
        recompute_blocks(llm)
    if cfg.compile:
        compile_blocks(vision, bridge, llm)
    sizes = cfg.image_encoder_sizes()
    statistics = image_statistics(cfg)
    normalised = {} if statistics == CLIP else {"image_statistics": str(statistics)}
    files = {key: frozen_identity(path, sizes) for key, path in cfg.image_encoder_files().items()}
    base = sizes | normalised | files | {"llama_model": fingerprint(llm_folder)}
    model = architecture(vision, bridge, llm, encoder, _query_sizes(cfg)[1], base, adapters, cfg.projector)
    check_vocabulary(encoder.tokenizer, model.token_embedding.weight.shape[0], llm_folder)
    if cfg.ckpt:
        load_projection(model, cfg.ckpt)
    logger.info("loaded in %s", duration(time.monotonic() - began))
    return model.eval()


def _build_adapters(llm: nn.Module, settings: LoraConfig) -> Adapters | None:
    if settings.r:
        from minigpt4.models.lora import add_lora

        return add_lora(llm, settings)
    if settings != LoraConfig():
        logger.warning("model.lora.r is 0, so there are no adapters, and nothing else in model.lora is used")
    return None


def build_prompt_encoder(cfg: ModelConfig) -> PromptEncoder:
    """The prompt encoder of the configured language model; reads its tokenizer only."""
    folder = language_model_folder(cfg.llama_model, "model.llama_model")
    return PromptEncoder(
        tokenizer=load_tokenizer(folder),
        template=configured_template(cfg),
        num_image_tokens=_query_sizes(cfg)[0],
        max_txt_len=cfg.max_txt_len,
        max_context_len=cfg.max_context_len,
    )


def build_image_encoders(
    cfg: ModelConfig, device: torch.device, dtype: torch.dtype | None
) -> tuple[VisionEncoder, Bridge]:
    """The vision encoder and the bridge behind it; arguments and errors as for `build_model`."""
    _check_encoder_weights(cfg)
    vision = build_vision_encoder(cfg, dtype, device)
    if not cfg.has_qformer:
        from minigpt4.models.merged_patches import build_merged_patches

        return vision, build_merged_patches(vision, cfg.joined_patches)
    return vision, build_qformer(
        vision.width, cfg.num_query_token, cfg.q_former_args, cfg.q_former_model, dtype, device
    )


def _query_sizes(cfg: ModelConfig) -> tuple[int, int]:
    """Queries of an image and their width; no weight is read."""
    if cfg.has_qformer:
        return cfg.num_query_token, query_width(cfg.q_former_args)
    from minigpt4.models.merged_patches import build_merged_patches, merged_tokens

    vision = empty_vision_encoder(cfg)
    return merged_tokens(vision, cfg.joined_patches), build_merged_patches(vision, cfg.joined_patches).width


def load_projection(model: MiniGPT4, path: str | Path) -> None:
    """Load a checkpoint's projection, and adapters, into `model`.

    Raises:
        CheckpointError: It has another width, was trained with another template or other adapters, or is not finite.
    """
    state, metadata = read_projection(path)
    _check_metadata(model, metadata, str(path))
    model.load_trainable(state, str(path))


def with_projection(model: MiniGPT4, path: str | Path) -> MiniGPT4:
    """A second model with a checkpoint's projection and adapters that shares all frozen parts of `model`.

    Raises:
        CheckpointError: As for `load_projection`.
    """
    adapters = None if model.adapters is None else model.adapters.twin()
    llm = model.llama_model if adapters is None else adapters.llm
    second = type(model)(
        model.visual_encoder,
        model.bridge,
        llm,
        model.encoder,
        model.query_width,
        model.base,
        adapters,
        model.projector,
    )
    load_projection(second, path)
    return second.eval()


def _check_encoder_weights(cfg: ModelConfig) -> None:
    """Refuse random weights of a frozen encoder, or say that they are random where that is allowed."""
    for key, path in cfg.image_encoder_files().items():
        if path:
            continue
        if not cfg.allow_random:
            raise ConfigError(
                f"model.{key} is not set: that frozen part would be random and tell nothing about an image; give the "
                f"file's path by --options model.{key}=PATH, or set model.allow_random: true for a test"
            )
        logger.warning(
            "model.%s is not set: that frozen part has random weights (seed %d); use it for tests only",
            key,
            RANDOM_SEED,
        )


def _check_metadata(model: MiniGPT4, metadata: dict[str, str], source: str) -> None:
    ours = model.metadata()
    # In stage 1 the language model sees no dialogue, so that projection fits any template: stage 2 builds on it.
    wording = () if metadata.get("prompt_template") == STAGE1_PATTERN else ("prompt_template", "end_sym")
    for key in (*wording, "num_query_token", "lora.r", "lora.alpha", "lora.targets"):
        if key in metadata and metadata[key] != ours.get(key):
            raise CheckpointError(
                f"{source} was trained with {key} {json.dumps(metadata[key])}, this configuration has "
                f"{json.dumps(ours.get(key, 'none'))}; set {_setting(key, metadata, ours)}, or choose another "
                "checkpoint"
            )
    if "prompt_template" in metadata and metadata.get("system", "") != ours["system"]:
        logger.warning(
            "%s was trained with the system message %s, this configuration has %s (model.system); answers may be worse",
            source,
            json.dumps(metadata.get("system", "")),
            json.dumps(ours["system"]),
        )
    changed = sorted(
        key.removeprefix("base.") for key in metadata if key.startswith("base.") and metadata[key] != ours.get(key)
    )
    files = [name for name in changed if name in BASE_FILES]
    sizes = [
        f"{name} was {metadata[f'base.{name}']}, is {ours.get(f'base.{name}')}" for name in changed if name not in files
    ]
    if files:
        logger.warning(
            "%s was trained on other files of %s than those loaded now; answers may be worse", source, ", ".join(files)
        )
    if sizes:
        logger.warning(
            "%s was trained with image encoders of other sizes (%s); answers may be worse", source, "; ".join(sizes)
        )


def _setting(key: str, metadata: dict[str, str], ours: dict[str, str]) -> str:
    """The setting that makes what a checkpoint's metadata has under `key`, and its value."""
    if key == "num_query_token":
        theirs, own = (recorded.get("base.has_qformer", "true") for recorded in (metadata, ours))
        if theirs != own:
            return f"model.has_qformer to {theirs}"
        joined = [recorded.get("base.joined_patches", str(JOINED_PATCHES)) for recorded in (metadata, ours)]
        if own == "false" and joined[0] != joined[1]:
            return f"model.joined_patches to {joined[0]}"
        if own == "false":
            return f"model.image_size to {metadata.get('base.image_size', 'that of the checkpoint')}"
    return f"model.{key} to the checkpoint's"


@dataclass(frozen=True, slots=True)
class ChosenPrecision:
    """Number formats of a model; the projection and its optimizer always compute in float32.

    Attributes:
        frozen: format of the frozen weights, and so of everything computed with them.
        reason: what led to it, for the log.
    """

    frozen: torch.dtype
    reason: str

    @property
    def scale_loss(self) -> bool:
        """Whether gradients need a loss scale, because they pass through float16."""
        return self.frozen is torch.float16

    def __str__(self) -> str:
        scaled = ", with a loss scale in training" if self.scale_loss else ""
        return f"frozen weights in {_name(self.frozen)}, projection in float32{scaled} (model.precision: {self.reason})"


def choose_precision(
    cfg: ModelConfig, device: torch.device, processes: int | None = None, in_float32: int | None = None
) -> ChosenPrecision:
    """Number formats by `model.precision`, said in the log; `auto` follows the device, the files and the free memory.

    It is what the device computes natively and fastest, and on a CPU bfloat16 where float32 does not fit. Autocast is
    not needed: the frozen weights are stored in the format they compute in, and the projection, the only module in
    float32, converts its output to the language model's format.

    Several ranks have to take the answer of one of them, before any of them loads weights.

    Args:
        cfg: section `model`.
        device: device of the model.
        processes: processes of this machine that each load the weights; None: as many as torchrun started.
        in_float32: bytes of the frozen weights in float32; None: judged by their files.
    """
    chosen = (
        _automatic(cfg, device, processes, in_float32) if cfg.precision is Precision.auto else _as_set(cfg.precision)
    )
    logger.info("precision: %s", chosen)
    return chosen


def _as_set(precision: Precision) -> ChosenPrecision:
    return ChosenPrecision(DTYPES[precision], precision.value)


def _automatic(
    cfg: ModelConfig, device: torch.device, processes: int | None, in_float32: int | None
) -> ChosenPrecision:
    if device.type == "cuda":
        native = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return ChosenPrecision(native, f"auto, {_name(native)} is native on {device.type}")
    copies = processes or int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    needed = copies * (weight_bytes(cfg, torch.float32) if in_float32 is None else in_float32)
    free = free_memory(device)
    if needed <= free:
        return ChosenPrecision(torch.float32, f"auto, float32 is fastest on {device.type} and fits in its memory")
    return ChosenPrecision(
        torch.bfloat16, f"auto, float32 would take {_gib(needed)} of the {_gib(free)} that are free on {device.type}"
    )


def weight_bytes(cfg: ModelConfig, dtype: torch.dtype, *, with_encoders: bool = True) -> int:
    """Bytes of the frozen weights, at least, judged by their files; 0 for files that are missing.

    Args:
        cfg: section `model`.
        dtype: number format of what is not quantised.
        with_encoders: count the vision encoder and the bridge.
    """
    folder = Path(str(cfg.llama_model))
    stored = sum(_numbers(file, folder) for file in _weight_files(folder))
    bytes_each = {LowResource.off: float(dtype.itemsize), LowResource.int8: 1.0, LowResource.nf4: 0.5}
    total = stored * bytes_each[cfg.low_resource]
    if with_encoders:  # a .pth may hold float32, so that it has at least a number for each 4 bytes
        encoders = [weights_file(path) for path in cfg.image_encoder_files().values() if path]
        total += sum(path.stat().st_size // 4 * dtype.itemsize for path in encoders if path.is_file())
    return int(total)


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load of a folder, which may hold copies in other formats."""
    for name in USUAL_NAMES:
        if (folder / name).is_file():
            return [folder / name]
        with suppress(DataError, LookupError, TypeError, AttributeError):
            names = set(read_json(folder / f"{name}.index.json")["weight_map"].values())
            return [folder / file for file in sorted(names)]
    return []


def _numbers(file: Path, folder: Path) -> int:
    """Numbers in a file of a language model's weights; nothing but a header is read."""
    try:
        if file.suffix == ".safetensors":
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        config = read_json(folder / "config.json")
        name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        return file.stat().st_size // getattr(torch, name).itemsize
    except (OSError, ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError, DataError):
        return 0  # the loader names what is wrong with it


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device; of a CPU's memory, within the limit of its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such limit
        limit = int((group / "memory.max").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - int((group / "memory.current").read_text()) + int(cache["inactive_file"]))
    return free


def check_memory(cfg: ModelConfig, dtype: torch.dtype, device: torch.device, *, with_encoders: bool = True) -> None:
    """Refuse to load weights that do not fit, which on a CPU would mean hours of swapping.

    Args:
        cfg: section `model`.
        dtype: number format of the frozen weights.
        device: device of the model.
        with_encoders: whether the vision encoder and the bridge are loaded.

    Raises:
        ConfigError: They do not fit; the message names what does.
    """
    needed, free = weight_bytes(cfg, dtype, with_encoders=with_encoders), free_memory(device)
    if needed <= free:
        return
    ways = {f"model.low_resource={low.value}": (replace(cfg, low_resource=low), dtype) for low in QUANTISED}
    if dtype is torch.float32:
        ways = {"model.precision=bfloat16": (cfg, torch.bfloat16)} | ways
    sizes = {way: weight_bytes(*given, with_encoders=with_encoders) for way, given in ways.items()}
    smaller = [f"{way} ({_gib(size)})" for way, size in sizes.items() if size <= min(free, needed - 1)]
    raise ConfigError(
        f"model.llama_model: the frozen weights take {_gib(needed)} in {_name(dtype)}, and {_gib(free)} are free on "
        f"{device.type}; {'set ' + ' or '.join(smaller) if smaller else 'take a smaller model'}, or free memory"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
