"""Prompt embeddings -> answers, through transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import StoppingCriteriaList

from minigpt4.common.schema import GenerationConfig
from minigpt4.conversation.stopping import StopAtText
from minigpt4.conversation.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        text: What stands before the first stop text.
        token_ids: The tokens as generated, up to the end of the sequence, stop text included.
    """

    text: str
    token_ids: tuple[int, ...]


def generate_answers(
    llm: nn.Module,
    tokenizer: Tokenizer,
    embeds: Tensor,
    attention_mask: Tensor,
    settings: GenerationConfig,
    stop: str,
) -> list[Answer]:
    """Continue a batch of prompts, each row to its own stop text.

    Args:
        llm: Causal language model.
        tokenizer: Its tokenizer.
        embeds: Left-padded prompt embeddings, (B, T, D).
        attention_mask: 0 on padding, (B, T); position ids follow it.
        settings: Greedy, beam or sampling, and their limits.
        stop: Ends an answer.
    """
    output: Tensor = llm.generate(  # type: ignore[operator]
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        stopping_criteria=StoppingCriteriaList([StopAtText(tokenizer, stop)]),
        **_options(settings, tokenizer),
    )
    return [_answer(row, tokenizer, stop) for row in output.tolist()]


def _options(settings: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens,
        "num_beams": settings.num_beams,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id if tokenizer.eos_id is not None else 0,
    }
    if settings.do_sample:
        options |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    if settings.num_beams > 1:
        options["length_penalty"] = settings.length_penalty
    return options


def _answer(row: Sequence[int], tokenizer: Tokenizer, stop: str) -> Answer:
    ids = list(row)
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    text = tokenizer.decode(ids)
    return Answer(text=(text.split(stop, 1)[0] if stop else text).strip(), token_ids=tuple(ids))
