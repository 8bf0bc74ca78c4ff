"""Correction by a language model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch

from minigpt4.common.distributed import start_processes
from minigpt4.common.errors import DataError
from minigpt4.common.files import language_model_folder
from minigpt4.common.schema import GenerationConfig, ModelConfig, RefineConfig
from minigpt4.conversation.tokenizer import check_vocabulary
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner, read_request, validate_correction
from minigpt4.models.generation import Generator
from minigpt4.models.llm import build_llm
from minigpt4.models.loading import build_prompt_encoder, choose_precision


class LanguageModelRefiner(Refiner):
    """A causal language model in Hugging Face's layout, asked in the alignment model's dialogue template.

    Args:
        settings: request, limits, and `llm_model`, the language model's folder.
        model: alignment model; gives the template and the number format, and the language model where `llm_model` is
            null.
        seed: part of the names of all random generators.
        device: auto, cpu or cuda.

    Raises:
        MiniGPT4Error: The folder holds no language model, or the prompt file is missing.
    """

    def __init__(self, settings: RefineConfig, *, model: ModelConfig, seed: int, device: str) -> None:
        self.settings = settings
        self.seed = seed
        self.request = read_request(settings.prompt_path)
        model = replace(model, llama_model=settings.llm_model or model.llama_model)
        folder = language_model_folder(model.llama_model, "curation.refine.llm_model")
        place = start_processes(device).device
        self.encoder = build_prompt_encoder(model)
        self.llm = build_llm(folder, model.low_resource, choose_precision(model, place).frozen, place)
        embedding = self.llm.get_input_embeddings()  # type: ignore[operator]
        check_vocabulary(self.encoder.tokenizer, embedding.weight.shape[0], folder)
        self.context = getattr(self.llm.config, "max_position_embeddings", None) or model.max_context_len
        self.generation = GenerationConfig(
            max_new_tokens=settings.max_tokens,
            do_sample=settings.temperature > 0,
            temperature=settings.temperature or 1.0,
        )

    @torch.no_grad()
    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The language model's correction of the main description; arguments and errors as for `Refiner.refine`.

        What is sampled depends on the seed and the sample alone.
        """
        try:
            ids = self.encoder.prompt(f"{self.request} {texts[0]}", num_images=0, source=f"sample {sample}")
        except DataError as error:
            raise RefineError(str(error)) from error
        # What a language model generates beyond its context is noise.
        limit = min(self.generation.max_new_tokens, self.context - len(ids))
        if limit < 1:
            raise RefineError(f"the prompt has {len(ids)} tokens, the language model's context {self.context}")
        settings = replace(self.generation, max_new_tokens=limit)
        generator = Generator(self.llm, self.encoder.tokenizer, settings, self.encoder.template.end)
        embedding = self.llm.get_input_embeddings()  # type: ignore[operator]
        embeds = embedding(torch.tensor(ids, device=embedding.weight.device))
        with torch.random.fork_rng():
            torch.manual_seed(Random(f"{self.seed}-refine-{sample}").getrandbits(63))
            (answer,) = generator.generate([embeds])
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer.token_ids)}
        if len(answer.token_ids) == limit and not generator.stop.reached(answer.token_ids):
            reason = "curation.refine.max_tokens" if limit == self.generation.max_new_tokens else "the context's end"
            raise RefineError(f"the answer is cut at {reason}, after {limit} tokens: {answer.text[:80]!r}", usage)
        return validate_correction(answer.text, texts[0], self.settings.min_overlap, usage)
