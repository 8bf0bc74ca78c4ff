"""Configuration -> a model with its weights, in the right number formats."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt4.common.checkpoint import fingerprint, model_state, read_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.files import require_path
from minigpt4.common.registry import models
from minigpt4.common.schema import Amp, ModelConfig, Precision
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import NO_TEMPLATE, configured_template
from minigpt4.conversation.tokenizer import load_tokenizer
from minigpt4.models.llm import build_llm, compile_blocks
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.qformer import QFormer, build_qformer, query_width
from minigpt4.models.vision import VisionEncoder, build_vision_encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainPrecision:
    """Number formats of a run; the projection and its optimizer always compute in float32.

    Attributes:
        frozen: Format of the frozen weights, and so of everything computed with them.
        scale_loss: Whether gradients need a loss scale, because they pass through float16.
        reason: Why, for the log.
    """

    frozen: torch.dtype
    scale_loss: bool
    reason: str

    def __str__(self) -> str:
        frozen = str(self.frozen).removeprefix("torch.")
        scaled = "with a loss scale" if self.scale_loss else "no loss scale"
        return f"frozen weights in {frozen}, projection in float32, {scaled} ({self.reason})"


FORMATS = {
    Amp.bf16: torch.bfloat16,
    Amp.fp16: torch.float16,
    Amp.off: torch.float32,
    Precision.float32: torch.float32,
    Precision.bfloat16: torch.bfloat16,
    Precision.float16: torch.float16,
}


def native_amp(device: torch.device) -> Amp:
    """The fastest format that the device computes natively."""
    if device.type != "cuda":
        return Amp.off
    return Amp.bf16 if torch.cuda.get_device_capability(device) >= (8, 0) else Amp.fp16


def train_precision(amp: Amp, precision: Precision, device: torch.device) -> TrainPrecision:
    """Number formats from `run.amp` and `model.precision`.

    Autocast is not needed: the frozen weights are held in the format they compute in, and the projection, the only
    module in float32, hands its output over in the language model's format.

    Args:
        amp: `auto` follows the device.
        precision: `auto` follows amp; anything else wins for the frozen weights.
        device: Of this process.
    """
    chosen = native_amp(device) if amp is Amp.auto else amp
    reason = f"run.amp: {amp.value}" + (f", {chosen.value} on {device.type}" if amp is Amp.auto else "")
    frozen = FORMATS[chosen]
    if precision is not Precision.auto:
        frozen = FORMATS[precision]
        reason += f", model.precision: {precision.value}"
    return TrainPrecision(frozen, scale_loss=frozen is torch.float16, reason=reason)


def evaluation_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Format of the frozen weights in evaluation and chat; `auto` follows the device."""
    return FORMATS[native_amp(device) if precision is Precision.auto else precision]


WEIGHTS = "MINIGPT4_WEIGHTS"


def build_prompt_encoder(cfg: ModelConfig) -> PromptEncoder:
    """The prompt encoder of the configured language model; needs its tokenizer only."""
    folder = require_path(cfg.llama_model, "model.llama_model", WEIGHTS, folder=True)
    return PromptEncoder(
        tokenizer=load_tokenizer(folder),
        template=configured_template(cfg),
        num_image_tokens=cfg.num_query_token,
        max_txt_len=cfg.max_txt_len,
        max_context_len=cfg.max_context_len,
    )


def build_model(
    cfg: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_encoders: bool = True,
    keep_llm_on_cpu: bool = False,
) -> MiniGPT4:
    """The model of the configured architecture with its weights, in eval mode.

    Args:
        cfg: The model's configuration.
        device: Where it goes.
        dtype: Number format of the frozen weights.
        with_encoders: Load the vision encoder and the Q-Former; not needed where all features are cached.
        keep_llm_on_cpu: Leave the language model on the CPU and in its files' number format, for `shard_llm`.

    Raises:
        ConfigError: An unknown architecture, or a path that is not set or does not exist.
        CheckpointError: A file that cannot be read or does not fit.
    """
    build = models.get(cfg.arch)
    model: MiniGPT4 = build(cfg, device, dtype, with_encoders=with_encoders, keep_llm_on_cpu=keep_llm_on_cpu)
    return model


@models.register("minigpt4")
def build_minigpt4(
    cfg: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_encoders: bool = True,
    keep_llm_on_cpu: bool = False,
) -> MiniGPT4:
    """MiniGPT-4 with its frozen weights, and the projection of `model.ckpt` where one is given; as `build_model`.

    Every path is checked before the first large file is read.
    """
    llm_folder = require_path(cfg.llama_model, "model.llama_model", WEIGHTS, folder=True)
    paths = {"model.vit_weights": cfg.vit_weights, "model.q_former_model": cfg.q_former_model, "model.ckpt": cfg.ckpt}
    files = {key: require_path(path, key, WEIGHTS) for key, path in paths.items() if path}
    if cfg.ckpt:
        read_checkpoint(cfg.ckpt)  # a broken file is found now, not after minutes of loading the others
    encoder = build_prompt_encoder(cfg)
    vision, qformer = build_image_encoders(cfg, device, dtype) if with_encoders else (None, None)
    llm_place = (None, torch.device("cpu")) if keep_llm_on_cpu else (dtype, device)
    llm = build_llm(llm_folder, cfg.low_resource, *llm_place)
    if cfg.compile:
        compile_blocks(vision, qformer, llm)
    base = {key.removeprefix("model."): fingerprint(path) for key, path in files.items() if key != "model.ckpt"}
    base["llama_model"] = fingerprint(llm_folder)
    model = MiniGPT4(vision, qformer, llm, encoder, query_width(cfg.q_former_args), base)
    _check_vocabulary(model, llm_folder)
    if cfg.ckpt:
        load_projection(model, cfg.ckpt)
    return model.eval()


def build_image_encoders(cfg: ModelConfig, device: torch.device, dtype: torch.dtype) -> tuple[VisionEncoder, QFormer]:
    """The two frozen parts that see pictures; arguments and errors as for `build_model`."""
    vision = build_vision_encoder(
        cfg.vit_model, cfg.image_size, cfg.vit_blocks, cfg.vit_args, cfg.vit_weights, dtype, device
    )
    qformer = build_qformer(vision.width, cfg.num_query_token, cfg.q_former_args, cfg.q_former_model, dtype, device)
    return vision, qformer


def load_projection(model: MiniGPT4, path: str | Path) -> None:
    """Put a checkpoint's projection into `model`, if it was made for this template and width.

    Raises:
        CheckpointError: It does not fit, or was trained with another template.
    """
    content = read_checkpoint(path)
    _check_metadata(model, content.get("metadata"), str(path))
    model.load_trainable(model_state(content), str(path))


def with_projection(model: MiniGPT4, path: str | Path) -> MiniGPT4:
    """A second model with a checkpoint's projection and all frozen parts of `model`, which stay in memory once.

    Raises:
        CheckpointError: As for `load_projection`.
    """
    twin = MiniGPT4(
        model.visual_encoder, model.qformer, model.llama_model, model.encoder, model.query_width, model.base
    )
    load_projection(twin, path)
    return twin.eval()


def _check_metadata(model: MiniGPT4, metadata: object, source: str) -> None:
    if not isinstance(metadata, dict):
        return  # a published checkpoint: it says nothing of its template
    ours = model.metadata()
    # Stage 1 shows the language model no dialogue; what it learnt goes into any, which is what stage 2 is for.
    wording = () if metadata.get("prompt_template") == NO_TEMPLATE else ("prompt_template", "end_sym")
    for key in (*wording, "num_query_token"):
        if key in metadata and metadata[key] != ours[key]:
            raise CheckpointError(
                f"{source} was trained with {key} {json.dumps(metadata[key])}, this configuration has "
                f"{json.dumps(ours[key])}; set model.{key} to the checkpoint's, or choose another checkpoint"
            )
    if metadata.get("system", "") != ours["system"]:
        logger.warning(
            "%s was trained with the system message %s, this configuration has %s (model.system); answers may be worse",
            source,
            json.dumps(metadata.get("system", "")),
            json.dumps(ours["system"]),
        )
    changed = [key for key in metadata if key.startswith("base.") and metadata[key] != ours.get(key)]
    if changed:
        logger.warning(
            "%s was trained on other files of %s than the ones loaded now; answers may be worse",
            source,
            ", ".join(key.removeprefix("base.") for key in sorted(changed)),
        )


def _check_vocabulary(model: MiniGPT4, folder: Path) -> None:
    rows = model.token_embedding.weight.shape[0]
    if model.encoder.tokenizer.vocab_size > rows:
        raise ConfigError(
            f"model.llama_model: the tokenizer in {folder} has {model.encoder.tokenizer.vocab_size} tokens, the "
            f"language model embeds {rows}; they do not belong together"
        )
