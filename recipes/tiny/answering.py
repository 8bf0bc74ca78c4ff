"""Answers of the tiny model: from a scene's code in words, and from its image."""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.models.generation import Generator
from minigpt4.models.minigpt4 import MiniGPT4, splice_images
from minigpt4.processors.image import normalize
from minigpt4.scenes.truth import Scene
from recipes.tiny.codes import encode_scene
from recipes.tiny.language import CodeReader
from recipes.tiny.oracle import Answerer

_BATCH = 100
_GREEDY = GenerationConfig(max_new_tokens=60)


def answer_from_codes(reader: CodeReader) -> Answerer:
    """Answers of the language model alone, which reads each scene's code as text."""

    generator = Generator(reader.model, reader.encoder.tokenizer, _GREEDY, reader.encoder.template.end)

    @torch.no_grad()
    def answer(scenes: list[Scene], instructions: list[str]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(scenes), _BATCH):
            prompts = [reader.encoder.prompt(text) for text in instructions[start : start + _BATCH]]
            codes = torch.tensor([encode_scene(scene) for scene in scenes[start : start + _BATCH]])
            ids = torch.tensor([[token for prompt in prompts for token in prompt]])
            tokens = reader.model.get_input_embeddings()(ids.clamp(min=0))
            positions = (ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1)
            embeds = splice_images(tokens, reader.code_embeddings(codes), positions)
            answers = generator.generate(embeds[0].split([len(prompt) for prompt in prompts]))
            texts += [answer.text for answer in answers]
        return texts

    return answer


def answer_from_images(model: MiniGPT4, images: Tensor) -> Answerer:
    """Answers of the complete model, which is given `images` (N, 3, S, S) uint8 and not the scenes."""

    def answer(scenes: list[Scene], instructions: list[str]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(instructions), _BATCH):
            prompts = [model.encoder.prompt(text) for text in instructions[start : start + _BATCH]]
            pixels = normalize(images[start : start + len(prompts)])
            texts += [a.text for a in model.generate(prompts, _GREEDY, images=pixels)]
        return texts

    return answer
