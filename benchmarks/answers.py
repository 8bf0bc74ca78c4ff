"""A language model whose greedy answers are known beforehand: each prompt has one of a stated length.

Random weights fall into loops and never end an answer, which says nothing about answers of different lengths.
Here the head's row of one token is the embedding of the token before it, so that the text walks along fixed chains to
the end token, with a margin that no number format blurs. Sizes, and with them the work, are those of any other weights.
"""

from __future__ import annotations

from random import Random

import torch
from torch import nn

from benchmarks.presets import VOCABULARY
from benchmarks.samples import AFTER, ANSWER, BEFORE
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.conversation.template import PromptEncoder

EOS = 2
FIRST_TOKEN = 10
MARGIN = 0.05


def make_prompts(encoder: PromptEncoder, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of random tokens around an image, and the answer that belongs to each, end token included."""
    draw = Random("prompts")
    tokens = list(range(FIRST_TOKEN, VOCABULARY - 1))
    draw.shuffle(tokens)
    assert encoder.tokenizer.bos_id is not None
    prompts, answers = [], []
    for _ in range(count):
        # Every token is used once, so that each has one successor.
        before, after = ([tokens.pop() for _ in range(number)] for number in (BEFORE, AFTER))
        answers.append([*(tokens.pop() for _ in range(draw.randint(*ANSWER) - 1)), EOS])
        prompts.append([encoder.tokenizer.bos_id, *before, *[IMAGE_POSITION] * encoder.num_image_tokens, *after])
    return prompts, answers


@torch.no_grad()
def teach(llm: nn.Module, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Set embeddings and head so that greedy decoding walks from each prompt's last token along its answer."""
    embedding, head = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight  # type: ignore[operator]
    embedding.normal_()
    embedding[[answer[-2] for answer in answers]] = embedding[answers[0][-2]].clone()  # what the end token follows
    for prompt, answer in zip(prompts, answers, strict=True):
        for token, successor in zip([prompt[-1], *answer], answer, strict=False):
            head[successor] = MARGIN * embedding[token]
