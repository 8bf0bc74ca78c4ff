"""Stopping each answer at its own stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import StoppingCriteria

from minigpt4.conversation.tokenizer import Tokenizer

CONTEXT_TOKENS = 2
_INCOMPLETE = "\ufffd"
"""What the first tokens of a character decode to until its last one has come."""


def settled(text: str, stop: str) -> str:
    """What of a growing answer will stay: without a stop text or a character that has only begun."""
    begun = (length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length]))
    text = text[: len(text) - next(begun, 0)]
    return text.rstrip(_INCOMPLETE).rstrip()


class StopAtText(StoppingCriteria):
    """Tells which answers have written the stop text; also to transformers' `generate`.

    Only the newest tokens are decoded: a token adds at least one byte, so a stop text that has just been completed
    lies within as many tokens as it has bytes (and a little context, because decoding strips a leading space).
    A stop text may thus be spread over tokens in any way ("##" + "#", ".###").

    Args:
        tokenizer: Decodes what was generated.
        stop: The text; empty: never stop.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.window = len(stop.encode()) + CONTEXT_TOKENS

    def written(self, ids: Sequence[int]) -> bool:
        """Whether the newest of these generated ids complete the stop text."""
        return bool(self.stop) and self.stop in self.tokenizer.decode(ids[-self.window :])

    def __call__(self, input_ids: LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Rows that are done, (B,) bool; `input_ids` is what was generated, (B, T)."""
        done = [self.written(row) for row in input_ids[:, -self.window :].tolist()]
        return torch.tensor(done, device=input_ids.device)
