"""Prompt embeddings -> answers: the one way in which evaluation, command line and chat generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from minigpt4.common.schema import GenerationConfig
from minigpt4.conversation.tokenizer import Tokenizer
from minigpt4.models.attention import packable
from minigpt4.models.continuous_batching import generate_batch

CONTEXT_TOKENS = 2
_INCOMPLETE = "\ufffd"
"""What the first tokens of a character decode to until its last one has come."""


def settled(text: str, stop: str) -> str:
    """What of a growing answer will stay: without a stop text or a character that has only begun."""
    begun = (length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length]))
    text = text[: len(text) - next(begun, 0)]
    return text.rstrip(_INCOMPLETE).rstrip()


class StopString(StoppingCriteria):
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

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether the newest of these generated ids complete the stop text."""
        return bool(self.stop) and self.stop in self.tokenizer.decode(ids[-self.window :])

    def __call__(self, input_ids: LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Rows that are done, (B,) bool; `input_ids` is what was generated, (B, T)."""
        done = [self.reached(row) for row in input_ids[:, -self.window :].tolist()]
        return torch.tensor(done, device=input_ids.device)


class TokenSampler:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        text: What stands before the first stop text.
        token_ids: The tokens as generated, up to the end of the sequence, stop text included.
    """

    text: str
    token_ids: tuple[int, ...]


class Generator:
    """Answers by one language model, each to its own stop text.

    Greedy answers and samples are decoded by `generate_batch`; beams, a static cache, and language models whose
    attention is of another kind, by transformers' `generate`.

    Args:
        llm: Causal language model.
        tokenizer: Its tokenizer.
        settings: Greedy, beam or sampling, and their limits.
        stop: Ends an answer.
    """

    def __init__(self, llm: nn.Module, tokenizer: Tokenizer, settings: GenerationConfig, stop: str) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.settings = settings
        self.stop = StopString(tokenizer, stop)

    def generate(self, prompts: Sequence[Tensor], rows: int | None = None) -> list[Answer]:
        """An answer to each prompt, in their order.

        Args:
            prompts: Embeddings of each, (T, D).
            rows: Prompts that are worked on at the same time; None: all.
        """
        rows = rows or max(1, len(prompts))
        if self.streams:
            return [self._answer(ids) for ids in self._decoded(prompts, rows)]
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(prompts), rows):
            batch = by_length[start : start + rows]
            answers |= zip(batch, self.generate_with_transformers([prompts[number] for number in batch]), strict=True)
        return [answers[number] for number in range(len(prompts))]

    def stream(self, prompt: Tensor) -> Iterator[Answer]:
        """The answer to one prompt (T, D) as it grows, a token at a time; the work stops with the caller's interest.

        What has only begun (a character, a stop text) is held back until it is known what it becomes; the last item is
        the whole answer. Where `streams` is False, only that comes.
        """
        if not self.streams:
            yield from self.generate([prompt])
            return
        for _, ids in self._steps([prompt], rows=1):
            answer = self._answer(ids)
            shown = replace(answer, text=settled(answer.text, self.stop.stop))
            yield shown
        if shown != answer:
            yield answer

    @property
    def streams(self) -> bool:
        """Whether answers are made token by token."""
        return self.settings.num_beams == 1 and not self.settings.static_cache and packable(self.llm)

    def _decoded(self, prompts: Sequence[Tensor], rows: int) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in prompts]
        for number, ids in self._steps(prompts, rows):
            said[number] = ids
        return said

    def _steps(self, prompts: Sequence[Tensor], rows: int) -> Iterator[tuple[int, list[int]]]:
        eos = self.tokenizer.eos_id

        def done(ids: Sequence[int]) -> bool:
            return ids[-1] == eos or self.stop.reached(ids)

        return generate_batch(
            self.llm, prompts, TokenSampler(self.settings, eos), done, rows, self.settings.max_new_tokens
        )

    def generate_with_transformers(self, prompts: Sequence[Tensor]) -> list[Answer]:
        """Answers to one batch, padded on the left, each row kept until the last one is done."""
        embeds, mask = left_padded(prompts)
        output: Tensor = self.llm.generate(  # type: ignore[operator]
            inputs_embeds=embeds,
            attention_mask=mask,
            stopping_criteria=StoppingCriteriaList([self.stop]),
            **self._options(),
        )
        return [self._answer(row) for row in output.tolist()]

    def _options(self) -> dict[str, Any]:
        settings, tokenizer = self.settings, self.tokenizer
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
        if settings.static_cache:
            options["cache_implementation"] = "static"
        return options

    def _answer(self, row: Sequence[int]) -> Answer:
        ids = list(row)
        if self.tokenizer.eos_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
        text, stop = self.tokenizer.decode(ids), self.stop.stop
        return Answer(text=(text.split(stop, 1)[0] if stop else text).strip(), token_ids=tuple(ids))


def left_padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings of B prompts, each (T, D) -> (embeddings (B, T, D) padded on the left, mask (B, T), 0 on padding)."""
    embeds = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    ones = [prompt.new_ones(len(prompt), dtype=torch.long) for prompt in prompts]
    return embeds, pad_sequence(ones, batch_first=True, padding_side="left")
