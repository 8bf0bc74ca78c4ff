"""Which token comes next: greedy or drawn, after the penalties that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from minigpt4.common.schema import GenerationConfig


class TokenChoice:
    """Logits -> next tokens, row by row.

    Args:
        settings: Greedy or sampling, and their limits.
        eos_id: Ends a sequence; held back until `min_new_tokens` are there.
    """

    def __init__(self, settings: GenerationConfig, eos_id: int | None) -> None:
        self.settings = settings
        self.eos_id = eos_id
        self._warpers = LogitsProcessorList()
        if settings.do_sample and settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.do_sample and settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    @torch.inference_mode()
    def __call__(self, logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        """(B, vocabulary) float32 and the ids generated so far -> (B,)."""
        if self.settings.repetition_penalty != 1.0 and ids[0]:
            logits = self._penalised(logits, ids)
        too_short = [row for row, said in enumerate(ids) if len(said) < self.settings.min_new_tokens]
        if too_short and self.eos_id is not None:
            logits[too_short, self.eos_id] = -torch.inf
        if not self.settings.do_sample:
            return logits.argmax(dim=1)
        scores = self._warpers(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]
        return torch.multinomial(scores.softmax(dim=1), 1).squeeze(1)

    def _penalised(self, logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, ids))
        # Rows differ in length; a row's first token counts once however often it is repeated to fill the row.
        filled = [[*said, *[said[0]] * (width - len(said))] for said in ids]
        penalise = RepetitionPenaltyLogitsProcessor(self.settings.repetition_penalty)
        penalised: Tensor = penalise(torch.tensor(filled, device=logits.device), logits)
        return penalised
