"""MiniGPT-4: frozen vision encoder and Q-Former -> trainable projection -> frozen language model (arXiv:2304.10592)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.common.errors import CheckpointError
from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import CACHED_NDIM, IGNORED_LABEL, IMAGE_POSITION, Batch
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.models.attention import Packed, packable, packed_attention
from minigpt4.models.flops import WorkMeter, forward_flops
from minigpt4.models.generation import Answer, Generator
from minigpt4.models.published_weights import CHECKPOINT_UNUSED, unexpected_keys
from minigpt4.models.qformer import QFormer
from minigpt4.models.vision import VisionEncoder
from minigpt4.processors.image import normalize


def splice_images(token_embeds: Tensor, image_embeds: Tensor | None, positions: Tensor) -> Tensor:
    """Put image embeddings at their places among token embeddings.

    Args:
        token_embeds: (B, T, D); what stands at image positions is replaced.
        image_embeds: (N, Q, D), in the order of the places; None: there are no images.
        positions: Places in the flattened (B*T) sequence, (N*Q,).

    Returns:
        (B, T, D).

    Raises:
        ValueError: Places and embeddings differ in number.
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
    """Sum over the target tokens of each sample, float32 (B,).

    Args:
        llm: The language model.
        embeds: Embeddings of the batch, images in their places, (B, T, D).
        batch: On the device.
    """
    return packed_losses(llm, embeds, batch) if packable(llm) else padded_losses(llm, embeds, batch)


def packed_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """Only what is no padding goes through the model, and only learnt positions through its head."""
    rows, width = batch.input_ids.shape
    places, targets = batch.token_positions, batch.target_positions
    with packed_attention(llm):
        logits = _logits(
            llm,
            inputs_embeds=embeds.flatten(0, 1).index_select(0, places).unsqueeze(0),
            position_ids=(places % width).unsqueeze(0),
            logits_to_keep=targets,
            layout=Packed(batch.lengths, places),
        )
    learnt_at = places.index_select(0, targets)
    labels = batch.labels.flatten().index_select(0, learnt_at + 1)
    losses = F.cross_entropy(logits[0], labels, reduction="none")
    return losses.new_zeros(rows).index_add(0, learnt_at // width, losses)


def padded_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """For any language model. The padding is on the right and no mask is passed: under causal attention nothing real
    sees the padding, and attention takes its fast path. Logits are computed where some row learns the next token."""
    columns = batch.target_columns
    logits = _logits(llm, inputs_embeds=embeds, logits_to_keep=columns)
    labels = batch.labels[:, columns + 1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view_as(labels).sum(dim=1)


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    logits: Tensor = llm(use_cache=False, **inputs).logits
    return logits.to(torch.float32)


PROJECTION = ("llama_proj.weight", "llama_proj.bias")


class MiniGPT4(nn.Module):
    """The alignment model; only `llama_proj` learns.

    Args:
        visual_encoder: Images -> patch features; None: every image comes as cached features.
        qformer: Patch features -> queries; None as well.
        llama_model: Causal language model of transformers.
        encoder: Encodes prompts for this language model.
        query_width: Width of the Q-Former.
        base: Fingerprints of the frozen parts' files, by name.
    """

    def __init__(
        self,
        visual_encoder: VisionEncoder | None,
        qformer: QFormer | None,
        llama_model: nn.Module,
        encoder: PromptEncoder,
        query_width: int,
        base: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.visual_encoder = visual_encoder
        self.qformer = qformer
        self.llama_model = llama_model
        self.encoder = encoder
        self.base = dict(base or {})
        self.llm_width: int = self.token_embedding.weight.shape[1]
        self.query_width = query_width
        self.llama_proj = nn.Linear(query_width, self.llm_width, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        return next(self.llama_model.parameters()).device

    @property
    def token_embedding(self) -> Any:
        """The language model's own table of token embeddings, (vocabulary, D)."""
        return self.llama_model.get_input_embeddings()  # type: ignore[operator]

    def train(self, mode: bool = True) -> MiniGPT4:
        """Set the mode of the projection; the frozen parts stay in eval, whatever the mode."""
        super().train(mode)
        for frozen in (self.visual_encoder, self.qformer, self.llama_model):
            if frozen is not None:
                frozen.eval()
        return self

    @torch.no_grad()
    def encode_queries(self, images: Tensor) -> Tensor:
        """What the frozen encoders make of images: (N, 3, S, S) -> (N, Q, width of the Q-Former).

        Features that a cache has kept are such already and come back as they are.
        """
        if images.ndim == CACHED_NDIM:
            return images
        assert self.visual_encoder is not None and self.qformer is not None, "built for cached features only"
        queries: Tensor = self.qformer(self.visual_encoder(normalize(images)))
        return queries

    def encode_image(self, images: Tensor) -> Tensor:
        """Images as embeddings of the language model: (N, 3, S, S) -> (N, Q, D)."""
        return self.project(self.encode_queries(images))

    def project(self, queries: Tensor) -> Tensor:
        """(N, Q, width of the Q-Former) -> (N, Q, D), in the projection's own precision."""
        projected: Tensor = self.llama_proj(queries.to(self.llama_proj_dtype))
        return projected

    @property
    def llama_proj_dtype(self) -> torch.dtype:
        """Number format of the projection: float32, also where the frozen parts are half precision."""
        return next(self.llama_proj.parameters()).dtype

    def embed(self, input_ids: Tensor, image_embeds: Tensor | None, image_positions: Tensor) -> Tensor:
        """Token ids (B, T) with images at their places, as embeddings (B, T, D)."""
        return splice_images(self.token_embedding(input_ids.clamp(min=0)), image_embeds, image_positions)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of all target tokens, float32 scalar.

        The sum, not the mean, so that the caller can divide by the targets of the whole global batch.
        """
        return self.answer_losses(batch).sum()

    def answer_losses(self, batch: Batch) -> Tensor:
        """The same by sample, (B,)."""
        image_embeds = None if batch.images is None else self.encode_image(batch.images)
        embeds = self.embed(batch.input_ids, image_embeds, batch.image_positions)
        if image_embeds is None:
            # Processes wait for each other's gradients, so there must be one of a batch without pictures too.
            nothing = torch.zeros(1, self.query_width, device=embeds.device)
            embeds = embeds + 0.0 * self.project(nothing).to(embeds.dtype)
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
        """Answers to encoded prompts, in their order.

        Args:
            prompts: As `encoder.prompt` makes them.
            settings: Greedy, beam or sampling, and their limits.
            images: Pictures of all prompts in order, (N, 3, S, S); None where there are none.
            queries: What `encode_queries` made of them, (N, Q, width of the Q-Former), instead of `images`.
            rows: Prompts worked on at the same time; None: all.
        """
        return self._generator(settings).generate(self._embed_prompts(prompts, images, queries), rows)

    def stream(
        self,
        prompt: Sequence[int],
        settings: GenerationConfig,
        *,
        images: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> Iterator[Answer]:
        """The answer to one prompt as it grows; arguments as for `generate`. Who stops iterating stops the work."""
        return self._generator(settings).stream(*self._embed_prompts([prompt], images, queries))

    def max_prompt_tokens(self, settings: GenerationConfig) -> int:
        """Tokens that a prompt may have, so that the answer fits into the language model's context behind it."""
        context = getattr(self.llama_model.config, "max_position_embeddings", None)
        allowed = self.encoder.max_context_len
        return allowed if context is None else min(allowed, max(1, context - settings.max_new_tokens))

    def _generator(self, settings: GenerationConfig) -> Generator:
        return Generator(self.llama_model, self.encoder.tokenizer, settings, self.encoder.template.end)

    @torch.no_grad()
    def _embed_prompts(
        self, prompts: Sequence[Sequence[int]], images: Tensor | None, queries: Tensor | None
    ) -> list[Tensor]:
        """Embeddings of each prompt with its images in place, (T, D)."""
        ids = torch.tensor([[token for prompt in prompts for token in prompt]])
        positions = (ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1).to(self.device)
        if images is not None:
            queries = self.encode_queries(images.to(self.device))
        image_embeds = None if queries is None else self.project(queries.to(self.device))
        embeds = self.embed(ids.to(self.device), image_embeds, positions)
        return list(embeds[0].split([len(prompt) for prompt in prompts]))

    def work_meter(self) -> WorkMeter:
        """Counts the work of training steps; runs the encoders once to see what an image takes."""
        if self.visual_encoder is None:
            return WorkMeter(self.llama_model, 0.0)
        size = self.visual_encoder.image_size
        image = torch.zeros(1, 3, size, size, device=self.device)
        return WorkMeter(self.llama_model, forward_flops(self.encode_queries, image))

    def trainable_state(self) -> dict[str, Tensor]:
        """The projection under its published names, on the CPU."""
        return {name: self.get_parameter(name).detach().cpu() for name in PROJECTION}

    def load_trainable(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take the projection from a checkpoint's tensors.

        Args:
            state: Published names -> tensors; buffers that published files carry along are passed over.
            source: File name for messages.

        Raises:
            CheckpointError: Missing or unexpected tensors, or a projection for another language model.
        """
        missing = [name for name in PROJECTION if name not in state]
        unexpected = unexpected_keys(state, PROJECTION, CHECKPOINT_UNUSED)
        if missing or unexpected:
            raise CheckpointError(
                f"{source} is no checkpoint of this model: missing {missing or 'nothing'}, "
                f"unexpected {unexpected[:3] or 'nothing'}; it must hold {', '.join(PROJECTION)}"
            )
        for name in PROJECTION:
            parameter = self.get_parameter(name)
            if state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{source} was trained for another model: {name} has shape {tuple(state[name].shape)}, this "
                    f"language model (width {self.llm_width}) needs {tuple(parameter.shape)}; "
                    "check model.ckpt and model.llama_model"
                )
        with torch.no_grad():
            for name in PROJECTION:
                self.get_parameter(name).copy_(state[name])

    def metadata(self) -> dict[str, str]:
        """What a checkpoint must remember besides its tensors: template, sizes, base weights."""
        template = self.encoder.template
        return {
            "prompt_template": template.first,
            "end_sym": template.end,
            "system": template.system,
            "llm_width": str(self.llm_width),
            "num_query_token": str(self.encoder.num_image_tokens),
        } | {f"base.{name}": value for name, value in self.base.items()}
