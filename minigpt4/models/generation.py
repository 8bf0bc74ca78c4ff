"""Prompt embeddings -> answers, for evaluation, the command line and chat alike: sampling, stop strings, streaming."""

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

STOP_CONTEXT_TOKENS = 2
"""Tokens decoded in front of a possible stop string, because decoding strips a leading space."""
INCOMPLETE_CHARACTER = "\ufffd"
"""What the first tokens of a character decode to until its last one is generated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        text: text in front of the first stop string.
        token_ids: generated tokens up to the end of the sequence, including the stop string.
    """

    text: str
    token_ids: tuple[int, ...]


class Generator:
    """Answers prompts by one language model.

    Greedy decoding and sampling run in `generate_batch`. Beams, a static cache, and language models with another kind
    of attention run in transformers' `generate`.

    Args:
        llm: causal language model.
        tokenizer: tokenizer of the language model.
        settings: greedy, beams or sampling, and their limits.
        stop: text that ends an answer; empty: none.
    """

    def __init__(self, llm: nn.Module, tokenizer: Tokenizer, settings: GenerationConfig, stop: str) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.settings = settings
        self.stop = StopString(tokenizer, stop)

    def generate(self, prompts: Sequence[Tensor], rows: int | None = None) -> list[Answer]:
        """An answer to each prompt, in order.

        Args:
            prompts: embeddings of each prompt, (T, D).
            rows: prompts decoded at the same time; None: all.
        """
        rows = rows or max(1, len(prompts))
        if self.streams:
            ids = dict(self._steps(prompts, rows))  # the last step of each prompt
            return [self._answer(ids[index]) for index in range(len(prompts))]
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(prompts), rows):
            batch = by_length[start : start + rows]
            generated = self.generate_with_transformers([prompts[index] for index in batch])
            answers |= zip(batch, generated, strict=True)
        return [answers[index] for index in range(len(prompts))]

    def stream(self, prompt: Tensor) -> Iterator[Answer]:
        """The answer to one prompt (T, D) as it grows, one item a token; the last item is the complete answer.

        Closing the iterator stops generation. An incomplete character or the beginning of a stop string is held back
        until it is known what it becomes. Where `streams` is False, only the complete answer is yielded.
        """
        if not self.streams:
            yield from self.generate([prompt])
            return
        for _, ids in self._steps([prompt], rows=1):
            answer = self._answer(ids)
            shown = replace(answer, text=stable_text(answer.text, self.stop.text))
            yield shown
        if shown != answer:
            yield answer

    @property
    def streams(self) -> bool:
        """Whether tokens are generated one by one."""
        return self.settings.num_beams == 1 and not self.settings.static_cache and packable(self.llm)

    def generate_with_transformers(self, prompts: Sequence[Tensor]) -> list[Answer]:
        """Answers to one batch, left-padded; every row is computed until the last one is done."""
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
        ones = [prompt.new_ones(len(prompt), dtype=torch.long) for prompt in prompts]
        output: Tensor = self.llm.generate(  # type: ignore[operator]
            inputs_embeds=pad_sequence(list(prompts), batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(ones, batch_first=True, padding_side="left"),
            stopping_criteria=StoppingCriteriaList([self.stop]),
            **options,
        )
        return [self._answer(row) for row in output.tolist()]

    def _steps(self, prompts: Sequence[Tensor], rows: int) -> Iterator[tuple[int, list[int]]]:
        eos = self.tokenizer.eos_id

        def finished(ids: Sequence[int]) -> bool:
            return ids[-1] == eos or self.stop.reached(ids)

        sample = TokenSampler(self.settings, eos)
        return generate_batch(self.llm, prompts, sample, finished, rows, self.settings.max_new_tokens)

    def _answer(self, ids: Sequence[int]) -> Answer:
        ids = list(ids)
        if self.tokenizer.eos_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
        text, stop = self.tokenizer.decode(ids), self.stop.text
        return Answer(text=(text.split(stop, 1)[0] if stop else text).strip(), token_ids=tuple(ids))


class TokenSampler:
    """Logits -> next tokens, row by row.

    Args:
        settings: greedy or sampling, and their limits.
        eos_id: token that ends a sequence; impossible before `min_new_tokens` tokens.
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
        """Logits (B, vocabulary) float32 and the generated ids of each row -> next ids, (B,)."""
        if self.settings.repetition_penalty != 1.0 and ids[0]:
            logits = self._penalise_repetition(logits, ids)
        too_short = [row for row, generated in enumerate(ids) if len(generated) < self.settings.min_new_tokens]
        if too_short and self.eos_id is not None:
            logits[too_short, self.eos_id] = -torch.inf
        if not self.settings.do_sample:
            return logits.argmax(dim=1)
        scores = self._warpers(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]
        return torch.multinomial(scores.softmax(dim=1), 1).squeeze(1)

    def _penalise_repetition(self, logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, ids))
        # Rows differ in length; a row's first token fills it up, which counts once however often it is repeated.
        filled = [[*generated, *[generated[0]] * (width - len(generated))] for generated in ids]
        processor = RepetitionPenaltyLogitsProcessor(self.settings.repetition_penalty)
        penalised: Tensor = processor(torch.tensor(filled, device=logits.device), logits)
        return penalised


class StopString(StoppingCriteria):
    """Finds the answers that have reached the stop string, here and in transformers' `generate`.

    Only the newest tokens are decoded: a token adds at least one byte, so a stop string that has just been completed
    lies within as many tokens as it has bytes. It may be split into tokens in any way ("##" + "#", ".###").

    Args:
        tokenizer: decodes the generated ids.
        text: the stop string; empty: never stop.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self._window = len(text.encode()) + STOP_CONTEXT_TOKENS

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether the newest of these generated ids complete the stop string."""
        return bool(self.text) and self.text in self.tokenizer.decode(ids[-self._window :])

    def __call__(self, input_ids: LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows of generated ids (B, T) are done, (B,) bool."""
        done = [self.reached(row) for row in input_ids[:, -self._window :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def stable_text(text: str, stop: str) -> str:
    """The part of a growing answer that later tokens cannot change: no incomplete stop string or character."""
    begun = (length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length]))
    text = text[: len(text) - next(begun, 0)]
    return text.rstrip(INCOMPLETE_CHARACTER).rstrip()
