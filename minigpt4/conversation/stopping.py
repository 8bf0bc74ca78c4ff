"""Stopping each sample of a batch at its own stop text."""

from __future__ import annotations

from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import StoppingCriteria

from minigpt4.conversation.tokenizer import Tokenizer

CONTEXT_TOKENS = 2


class StopAtText(StoppingCriteria):
    """Tells transformers' `generate` which rows have written the stop text.

    Only the newest tokens are decoded: a token adds at least one byte, so a stop text that has just been completed
    lies within as many tokens as it has bytes (and a little context, because decoding strips a leading space).
    A stop text may thus be spread over tokens in any way ("##" + "#", ".###").

    Args:
        tokenizer: Decodes what was generated.
        stop: The text; empty: never stop.
        num_prompt_tokens: Leading ids of each row that were not generated.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str, num_prompt_tokens: int = 0) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.num_prompt_tokens = num_prompt_tokens
        self.window = len(stop.encode()) + CONTEXT_TOKENS

    def __call__(self, input_ids: LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Rows that are done, (B,) bool; `input_ids` is (B, T)."""
        if not self.stop:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        rows = input_ids[:, self.num_prompt_tokens :][:, -self.window :].tolist()
        done = [self.stop in self.tokenizer.decode(row) for row in rows]
        return torch.tensor(done, device=input_ids.device)
