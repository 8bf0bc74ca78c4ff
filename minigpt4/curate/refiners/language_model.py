"""Correction by a language model of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch

from minigpt4.common.errors import DataError
from minigpt4.common.files import require_path
from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config, GenerationConfig
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner, checked, correction_request


@refiners.register("llm")
class LanguageModelRefiner(Refiner):
    """A causal language model in Hugging Face's layout, asked in the model's own template.

    Args:
        cfg: The configuration; `curation.refine.llm_model` or `model.llama_model` is the folder.

    Raises:
        MiniGPT4Error: A folder that holds no language model, or a prompt file that is missing.
    """

    def __init__(self, cfg: Config) -> None:
        from minigpt4.common.distributed import start_processes
        from minigpt4.models.llm import build_llm
        from minigpt4.models.loading import build_prompt_encoder, evaluation_dtype

        settings = cfg.curation.refine
        self.settings = settings
        self.request = correction_request(settings.prompt_path)
        model = replace(cfg.model, llama_model=settings.llm_model or cfg.model.llama_model)
        folder = require_path(model.llama_model, "curation.refine.llm_model", "MINIGPT4_WEIGHTS", folder=True)
        device = start_processes(cfg.run.device).device
        self.encoder = build_prompt_encoder(model)
        self.llm = build_llm(folder, model.low_resource, evaluation_dtype(cfg.evaluation.precision, device), device)
        self.context = getattr(self.llm.config, "max_position_embeddings", None) or model.max_context_len
        self.seed = cfg.curation.seed
        self.generation = GenerationConfig(
            max_new_tokens=settings.max_tokens,
            do_sample=settings.temperature > 0,
            temperature=settings.temperature or 1.0,
        )

    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The language model's correction of the main description; errors as for `Refiner.refine`."""
        try:
            ids = self.encoder.prompt(f"{self.request} {texts[0]}", num_images=0, source=f"sample {sample}")
        except DataError as error:  # of this description; the others can be corrected nevertheless
            raise RefineError(str(error)) from error
        # What a language model says behind its context is noise.
        limit = min(self.generation.max_new_tokens, self.context - len(ids))
        if limit < 1:
            raise RefineError(f"the prompt has {len(ids)} tokens, the language model's context {self.context}")
        return self._correction(sample, ids, texts[0], limit)

    @torch.no_grad()
    def _correction(self, sample: str, ids: Sequence[int], description: str, limit: int) -> Correction:
        """The answer to a prompt's ids, of at most `limit` tokens; a drawn one depends on seed and sample alone."""
        from minigpt4.models.generation import Generator

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
        return checked(answer.text, description, self.settings.min_overlap, usage)
