"""Correction by a language model of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from minigpt4.common.paths import existing
from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config, GenerationConfig
from minigpt4.curate.refiners.base import Correction, Refiner, checked
from minigpt4.curate.refiners.request import correction_request


@refiners.register("llm")
class LanguageModelRefiner(Refiner):
    """A causal language model in Hugging Face's layout, asked in the model's own template.

    Args:
        cfg: The configuration; `curation.refine.llm_model` or `model.llama_model` is the folder.

    Raises:
        MiniGPT4Error: A folder that holds no language model, or a prompt file that is missing.
    """

    def __init__(self, cfg: Config) -> None:
        from minigpt4.common.dist import start_processes
        from minigpt4.models.generation import Generator
        from minigpt4.models.llm import build_llm
        from minigpt4.models.loading import build_encoder
        from minigpt4.runners.precision import evaluation_dtype

        settings = cfg.curation.refine
        self.settings = settings
        self.request = correction_request(settings.prompt_path)
        model = replace(cfg.model, llama_model=settings.llm_model or cfg.model.llama_model)
        folder = existing(model.llama_model, "curation.refine.llm_model", "MINIGPT4_WEIGHTS", folder=True)
        device = start_processes(cfg.run.device).device
        self.encoder = build_encoder(model)
        self.llm = build_llm(folder, model.low_resource, evaluation_dtype(cfg.evaluation.precision, device), device)
        generation = GenerationConfig(
            max_new_tokens=settings.max_tokens,
            do_sample=settings.temperature > 0,
            temperature=settings.temperature or 1.0,
        )
        self.generator = Generator(self.llm, self.encoder.tokenizer, generation, self.encoder.template.end)

    @torch.no_grad()
    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The language model's correction of the main description; errors as for `Refiner.refine`."""
        ids = self.encoder.prompt(f"{self.request} {texts[0]}", num_images=0, source=f"sample {sample}")
        embedding = self.llm.get_input_embeddings()  # type: ignore[operator]
        embeds = embedding(torch.tensor(ids, device=embedding.weight.device))
        (answer,) = self.generator.answers([embeds])
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer.token_ids)}
        return checked(answer.text, texts[0], self.settings.min_overlap, usage)
