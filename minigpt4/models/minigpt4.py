"""MiniGPT-4: frozen vision encoder -> bridge -> trainable projection -> frozen language model (arXiv:2304.10592).

The bridge is a frozen Q-Former, or, as in MiniGPT-v2 (arXiv:2310.09478), neighbouring patches joined.

The model, the splicing of image embeddings into prompts, and the loss of the answers: the loss is computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.common.checkpoint import unexpected_keys
from minigpt4.common.errors import CheckpointError, first_few
from minigpt4.common.registry import models
from minigpt4.common.schema import GenerationConfig, Projector
from minigpt4.common.types import CACHED_NDIM, IGNORED_LABEL, IMAGE_POSITION, Batch
from minigpt4.conversation.template import PromptEncoder
from minigpt4.models.attention import Packed, packable, packed_attention
from minigpt4.models.flops import WorkMeter, forward_flops
from minigpt4.models.generation import Answer, Generator
from minigpt4.models.vision import VisionEncoder
from minigpt4.processors.image import CLIP, ChannelStatistics

if TYPE_CHECKING:
    from minigpt4.models.lora import Adapters
    from minigpt4.models.merged_patches import MergedPatches
    from minigpt4.models.qformer import QFormer

    Bridge = QFormer | MergedPatches
    """Patch features -> queries."""

logger = logging.getLogger(__name__)
PROJECTION = "llama_proj."
"""What the names of the projection's tensors begin with, in the model as in published checkpoints."""
CHECKPOINT_UNUSED = (r".*rotary_emb\.inv_freq$", r".*position_ids$")
"""Buffers beside the trained tensors in published training checkpoints."""


@models.register("minigpt4")
@models.register("minigpt_v2")
class MiniGPT4(nn.Module):
    """The alignment model; `llama_proj` is trained, and with it the language model's adapters where it has some.

    Args:
        visual_encoder: images -> patch features; None: every image comes as cached features.
        bridge: patch features -> queries; None: as for `visual_encoder`.
        llama_model: causal language model of transformers.
        encoder: encodes prompts for this language model.
        query_width: width of the queries.
        base: fingerprints of the frozen parts' files and the sizes of the image encoders, by name.
        adapters: adapters of `llama_model`; None: it has none.
        projector: form of the projection.
    """

    def __init__(
        self,
        visual_encoder: VisionEncoder | None,
        bridge: Bridge | None,
        llama_model: nn.Module,
        encoder: PromptEncoder,
        query_width: int,
        base: Mapping[str, str] | None = None,
        adapters: Adapters | None = None,
        projector: Projector = Projector.linear,
    ) -> None:
        super().__init__()
        self.visual_encoder = visual_encoder
        self.bridge = bridge
        self.llama_model = llama_model
        self.encoder = encoder
        self.base = dict(base or {})
        self.adapters = adapters
        self.llm_width: int = self.token_embedding.weight.shape[1]
        self.query_width = query_width
        self.projector = projector
        self.llama_proj = _projection(projector, query_width, self.llm_width, self.device)

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        return next(self.llama_model.parameters()).device

    @property
    def token_embedding(self) -> Any:
        """The language model's token embeddings, (vocabulary, D)."""
        return self.llama_model.get_input_embeddings()  # type: ignore[operator]

    @property
    def statistics(self) -> ChannelStatistics:
        """What images are normalised by; without an encoder, CLIP's."""
        return CLIP if self.visual_encoder is None else self.visual_encoder.statistics

    def train(self, mode: bool = True) -> MiniGPT4:
        """Set the mode of what is trained; the frozen parts stay in eval mode."""
        super().train(mode)
        for frozen in (self.visual_encoder, self.bridge, self.llama_model):
            if frozen is not None:
                frozen.eval()
        if self.adapters is not None:
            self.adapters.train(mode)
        return self

    @torch.no_grad()
    def encode_queries(self, images: Tensor) -> Tensor:
        """Output of the frozen encoders for images: (N, 3, S, S) -> (N, Q, width of the queries).

        Cached features are such an output already, and are returned as they are.
        """
        if images.ndim == CACHED_NDIM:
            return images
        assert self.visual_encoder is not None and self.bridge is not None, "built for cached features only"
        queries: Tensor = self.bridge(self.visual_encoder(images))
        return queries

    def encode_image(self, images: Tensor) -> Tensor:
        """Images as embeddings of the language model: (N, 3, S, S) -> (N, Q, D)."""
        return self.project(self.encode_queries(images))

    def project(self, queries: Tensor) -> Tensor:
        """(N, Q, width of the queries) -> (N, Q, D), in float32 even where the frozen parts are half precision."""
        dtype = next(self.llama_proj.parameters()).dtype
        projected: Tensor = self.llama_proj(queries.to(dtype))
        return projected

    def embed(self, input_ids: Tensor, image_embeds: Tensor | None, image_positions: Tensor) -> Tensor:
        """Embeddings (B, T, D) of token ids (B, T) with images at their positions; arguments as `splice_images`."""
        return splice_images(self.token_embedding(input_ids.clamp(min=0)), image_embeds, image_positions)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of all target tokens, float32 scalar.

        The sum, not the mean, so that the caller can divide by the targets of the global batch.
        """
        return self.answer_losses(batch).sum()

    def answer_losses(self, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of each sample's target tokens, float32 (B,)."""
        image_embeds = None if batch.images is None else self.encode_image(batch.images)
        embeds = self.embed(batch.input_ids, image_embeds, batch.image_positions)
        if image_embeds is None:
            # A sharded language model computes only where all ranks do, backwards as well.
            embeds.requires_grad_()
        return answer_losses(self.llama_model, embeds, batch)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig,
        *,
        images: Tensor | None = None,
        queries: Tensor | None = None,
        rows: int | None = None,
    ) -> list[Answer]:
        """Answers to encoded prompts, in order.

        Args:
            prompts: ids from `encoder.prompt`.
            settings: greedy, beams or sampling, and their limits.
            images: images of all prompts in order, (N, 3, S, S); None: there are none.
            queries: output of `encode_queries` for them, (N, Q, width of the queries), instead of `images`.
            rows: prompts decoded at the same time; None: all.
        """
        return self.generator(settings).generate(self.embed_prompts(prompts, images, queries), rows)

    def stream(
        self,
        prompt: Sequence[int],
        settings: GenerationConfig,
        *,
        images: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> Iterator[Answer]:
        """The answer to one prompt as it grows; arguments as for `generate`. Closing the iterator stops generation."""
        return self.generator(settings).stream(*self.embed_prompts([prompt], images, queries))

    def max_prompt_tokens(self, settings: GenerationConfig) -> int:
        """Longest prompt behind which the answer fits into the language model's context."""
        context = getattr(self.llama_model.config, "max_position_embeddings", None)
        allowed = self.encoder.max_context_len
        return allowed if context is None else min(allowed, max(1, context - settings.max_new_tokens))

    def generator(self, settings: GenerationConfig, stops: Sequence[str] = ()) -> Generator:
        """What generates answers with these settings, to prompts of `embed_prompts`.

        Args:
            settings: greedy, beams or sampling, and their limits.
            stops: texts that end an answer, beside the end of the template.
        """
        return Generator(self.llama_model, self.encoder.tokenizer, settings, self.encoder.template.end, *stops)

    @torch.no_grad()
    def embed_prompts(
        self, prompts: Sequence[Sequence[int]], images: Tensor | None, queries: Tensor | None
    ) -> list[Tensor]:
        """Embeddings of each prompt with its images, (T, D); arguments as for `generate`."""
        ids = torch.tensor([[token for prompt in prompts for token in prompt]])
        positions = (ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1).to(self.device)
        if images is not None:
            queries = self.encode_queries(images.to(self.device))
        image_embeds = None if queries is None else self.project(queries.to(self.device))
        embeds = self.embed(ids.to(self.device), image_embeds, positions)
        return list(embeds[0].split([len(prompt) for prompt in prompts]))

    def work_meter(self) -> WorkMeter:
        """Counts the operations of training steps; runs the encoders once to count those of an image."""
        if self.visual_encoder is None:
            return WorkMeter(self.llama_model, 0.0)
        size = self.visual_encoder.image_size
        image = torch.zeros(1, 3, size, size, device=self.device)
        return WorkMeter(self.llama_model, forward_flops(self.encode_queries, image))

    def trainable_names(self) -> dict[str, str]:
        """Names of the trained parameters -> published names."""
        return self._projection_names() | (self.adapters.names if self.adapters else {})

    def _projection_names(self) -> dict[str, str]:
        return {name: name for name in (PROJECTION + name for name, _ in self.llama_proj.named_parameters())}

    def trainable_state(self) -> dict[str, Tensor]:
        """What is trained, under its published names, on the CPU."""
        return {theirs: self.get_parameter(own).detach().cpu() for own, theirs in self.trainable_names().items()}

    def load_trainable(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load what is trained from a checkpoint's tensors.

        A checkpoint of a projection alone leaves adapters without effect.

        Args:
            state: published names -> tensors; the buffers in published files are ignored.
            source: file name for messages.

        Raises:
            CheckpointError: Missing or unexpected tensors, those of another language model, or numbers that are not
                finite.
        """
        # Checkpoints of forks with a newer peft name the adapter, of which there is one.
        state = {name.replace(".default.", "."): tensor for name, tensor in state.items()}
        names = self.trainable_names()
        alone = self.adapters is not None and not any(".lora_" in name for name in state)
        if alone:
            names = self._projection_names()
        _check_projector(self.projector, state, source)
        missing = [name for name in names.values() if name not in state]
        unexpected = unexpected_keys(state, names.values(), CHECKPOINT_UNUSED)
        if missing or unexpected:
            raise CheckpointError(
                f"{source} is no checkpoint of this model: missing {first_few(missing, 3) or 'nothing'}, unexpected "
                f"{first_few(unexpected, 3) or 'nothing'}; it must hold {first_few(names.values(), 3)}"
                + (self._lora_hint(state) or "; copy it again, or choose another")
            )
        for own, name in names.items():
            parameter = self.get_parameter(own)
            if state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{source} was trained for another model: {name} has shape {tuple(state[name].shape)}, this "
                    f"language model (width {self.llm_width}) needs {tuple(parameter.shape)}; check model.ckpt and "
                    f"model.llama_model{self._lora_hint(state)}"
                )
            if not state[name].is_floating_point() or not bool(state[name].isfinite().all()):
                raise CheckpointError(
                    f"{source}: {name} should hold finite floating-point numbers only, but has NaN, infinity or other "
                    "values; choose a checkpoint from before its training failed"
                )
        if self.adapters is not None and alone:
            logger.warning("%s holds a projection only: the adapters (model.lora) begin without effect", source)
            self.adapters.reset()
        with torch.no_grad():
            for own, name in names.items():
                self.get_parameter(own).copy_(state[name])

    def _lora_hint(self, state: Mapping[str, Tensor]) -> str:
        """What to set where a checkpoint has other adapters than the model."""
        found = {name.rsplit(".", 3)[1]: len(tensor) for name, tensor in state.items() if ".lora_A." in name}
        mine = dict.fromkeys(self.adapters.settings.targets, self.adapters.settings.r) if self.adapters else {}
        if not found or found == mine:
            return ""
        return (
            f"; it has adapters of rank {max(found.values())} in {', '.join(sorted(found))}: set model.lora.r and "
            "model.lora.targets to these, and model.lora.alpha to what they were trained with"
        )

    def metadata(self) -> dict[str, str]:
        """What a checkpoint records beside its tensors: template, sizes, fingerprints of the base weights."""
        template = self.encoder.template
        adapters = self.adapters.metadata() if self.adapters else {}
        return (
            {
                "prompt_template": template.opening_pattern + template.thought,
                "end_sym": template.end,
                "system": template.system,
                "llm_width": str(self.llm_width),
                "num_query_token": str(self.encoder.num_image_tokens),
            }
            | adapters
            | {f"base.{name}": value for name, value in self.base.items()}
        )


def _projection(projector: Projector, width: int, llm_width: int, device: torch.device) -> nn.Module:
    """What maps queries to embeddings of the language model, in float32 and with new weights."""
    if projector is Projector.linear:
        return nn.Linear(width, llm_width, device=device)
    layers = nn.Linear(width, llm_width, device=device), nn.GELU(), nn.Linear(llm_width, llm_width, device=device)
    return nn.Sequential(*layers)


def _check_projector(projector: Projector, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse the projection of the other form by its name.

    Raises:
        CheckpointError: The file holds one.
    """
    linear = f"{PROJECTION}weight" in state
    if not linear and f"{PROJECTION}0.weight" not in state:
        return
    theirs = Projector.linear if linear else Projector.mlp
    if theirs is not projector:
        raise CheckpointError(
            f"{source} holds a projection of the form {theirs.value}, this configuration has model.projector: "
            f"{projector.value}; set it to {theirs.value}, or choose another checkpoint"
        )


def splice_images(token_embeds: Tensor, image_embeds: Tensor | None, positions: Tensor) -> Tensor:
    """Replace token embeddings by image embeddings.

    Args:
        token_embeds: (B, T, D); its values at image positions are ignored.
        image_embeds: (N, Q, D), in the order of the positions; None: there are no images.
        positions: positions in the flattened (B*T) sequence, (N*Q,).

    Returns:
        (B, T, D).

    Raises:
        ValueError: Positions and embeddings differ in number.
    """
    num_embeds = 0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]
    if positions.numel() != num_embeds:
        raise ValueError(f"{positions.numel()} image positions in the prompts, but {num_embeds} image embeddings")
    if image_embeds is None:
        return token_embeds
    flat = token_embeds.flatten(0, 1)
    embeds = image_embeds.flatten(0, 1).to(flat.dtype)
    return flat.index_copy(0, positions, embeds).view_as(token_embeds)


def answer_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """Sum of the negative log-likelihood of each sample's target tokens, float32 (B,).

    Args:
        llm: the language model.
        embeds: embeddings of the batch with its images, (B, T, D).
        batch: labels and positions, on the device.
    """
    return packed_losses(llm, embeds, batch) if packable(llm) else padded_losses(llm, embeds, batch)


def packed_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """As `answer_losses`, without padding: logits are computed for target tokens only."""
    rows, width = batch.input_ids.shape
    positions, targets = batch.token_positions, batch.target_positions
    with packed_attention(llm):
        logits = _logits(
            llm,
            inputs_embeds=embeds.flatten(0, 1).index_select(0, positions).unsqueeze(0),
            position_ids=(positions % width).unsqueeze(0),
            logits_to_keep=targets,
            layout=Packed(batch.lengths, positions),
        )
    predicting = positions.index_select(0, targets)  # positions whose next token is a target
    labels = batch.labels.flatten().index_select(0, predicting + 1)
    losses = F.cross_entropy(logits[0], labels, reduction="none")
    return losses.new_zeros(rows).index_add(0, predicting // width, losses)


def padded_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """As `answer_losses`, for any language model.

    The padding is on the right and no mask is passed: with causal attention no token attends to the padding, and
    attention runs its fastest kernel. Logits are computed for positions that predict a target in some row.
    """
    columns = batch.target_columns
    logits = _logits(llm, inputs_embeds=embeds, logits_to_keep=columns)
    labels = batch.labels[:, columns + 1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view_as(labels).sum(dim=1)


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    logits: Tensor = llm(use_cache=False, **inputs).logits
    return logits.to(torch.float32)
