"""Prompt embeddings -> answers, for evaluation, the command line and chat alike: sampling, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from random import Random
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
from minigpt4.conversation.tokenizer import REPLACEMENT_CHARACTER, Tokenizer
from minigpt4.models.attention import packable
from minigpt4.models.continuous_batching import generate_batch

STOP_CONTEXT_TOKENS = 2
"""Tokens decoded in front of a possible stop string, because decoding strips a leading space."""


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
        stops: texts that end an answer.

    Attributes:
        ends: tokens that end an answer.
        sample: chooses the next tokens.
    """

    def __init__(self, llm: nn.Module, tokenizer: Tokenizer, settings: GenerationConfig, *stops: str) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.settings = settings
        self.stop = StopStrings(tokenizer, stops)
        self.ends = end_tokens(llm, tokenizer, stops)
        self.sample = TokenSampler(settings, self.ends)

    def generate(self, prompts: Sequence[Tensor], rows: int | None = None) -> list[Answer]:
        """An answer to each prompt, in order.

        Args:
            prompts: embeddings of each prompt, (T, D).
            rows: prompts decoded at the same time; None: all.
        """
        rows = rows or max(1, len(prompts))
        if self.streams:
            ids = dict(self._steps(prompts, rows))  # the last step of each prompt
            return [self.answer(ids[index]) for index in range(len(prompts))]
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
            shown = self.growing_answer(ids)
            yield shown
        answer = self.answer(ids)
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
            "eos_token_id": list(self.ends) or None,
            "pad_token_id": self.ends[0] if self.ends else 0,
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
        return [self.answer(row) for row in output.tolist()]

    def _steps(self, prompts: Sequence[Tensor], rows: int) -> Iterator[tuple[int, list[int]]]:
        return generate_batch(self.llm, prompts, self.sample, self.ended, rows, self.settings.max_new_tokens)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the newest of an answer's generated ids end it, by one of `ends` or a stop string."""
        return ids[-1] in self.ends or self.stop.reached(ids)

    def answer(self, ids: Sequence[int]) -> Answer:
        """The answer that generated ids stand for."""
        ids = list(takewhile(lambda token: token not in self.ends, ids))
        return Answer(text=self.stop.text_before(self.tokenizer.decode(ids)).strip(), token_ids=tuple(ids))

    def growing_answer(self, ids: Sequence[int]) -> Answer:
        """As `answer`, without what later tokens may change."""
        answer = self.answer(ids)
        return replace(answer, text=self.stop.stable_text(answer.text))


def end_tokens(llm: nn.Module, tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """The tokens that end an answer, without repetition.

    They are the tokenizer's end of the sequence, those of the language model's own generation settings where these name
    several, and stop strings that are special tokens, which no decoded text shows: Gemma's <end_of_turn> is one, while
    its tokenizer names <eos>.

    Args:
        llm: causal language model.
        tokenizer: tokenizer of the language model.
        stops: texts that end an answer.
    """
    own: Any = getattr(getattr(llm, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_id, *(own if isinstance(own, list | tuple) else ())]  # a single one may be made up
    for stop in filter(None, stops):
        ids = tokenizer.encode(stop)
        found += ids if len(ids) == 1 and not tokenizer.decode(ids) else []
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


class TokenSampler:
    """Logits -> next tokens, row by row.

    Args:
        settings: greedy or sampling, and their limits.
        ends: tokens that end an answer; impossible before `min_new_tokens` tokens.
    """

    def __init__(self, settings: GenerationConfig, ends: Sequence[int]) -> None:
        self.settings = settings
        self.ends = list(ends)
        self._warpers = LogitsProcessorList()
        if settings.do_sample and settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.do_sample and settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    @torch.inference_mode()
    def __call__(
        self,
        logits: Tensor,
        ids: Sequence[Sequence[int]],
        randoms: Sequence[Random] | None = None,
    ) -> Tensor:
        """Next ids, (B,).

        Args:
            logits: (B, vocabulary) float32; may be changed.
            ids: generated ids of each row.
            randoms: source of each row's random numbers, so that its tokens do not depend on other rows, nor on the
                device; None: torch's own for all rows.
        """
        if self.settings.repetition_penalty != 1.0 and ids[0]:
            logits = self._penalise_repetition(logits, ids)
        too_short = [row for row, generated in enumerate(ids) if len(generated) < self.settings.min_new_tokens]
        for end in self.ends if too_short else ():
            logits[too_short, end] = -torch.inf
        if not self.settings.do_sample:
            return logits.argmax(dim=1)
        scores = self._warpers(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]
        shares = scores.softmax(dim=1)
        if randoms is None:
            return torch.multinomial(shares, 1).squeeze(1)
        sums = shares.double().cumsum(dim=1)
        drawn = torch.tensor([[own.random()] for own in randoms], dtype=torch.float64).to(sums.device) * sums[:, -1:]
        return torch.searchsorted(sums, drawn, right=True).squeeze(1).clamp(max=sums.shape[1] - 1)

    def _penalise_repetition(self, logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, ids))
        # Rows differ in length; a row's first token fills it up, which counts once however often it is repeated.
        filled = [[*generated, *[generated[0]] * (width - len(generated))] for generated in ids]
        processor = RepetitionPenaltyLogitsProcessor(self.settings.repetition_penalty)
        penalised: Tensor = processor(torch.tensor(filled, device=logits.device), logits)
        return penalised


class StopStrings(StoppingCriteria):
    """Finds the answers that have reached a stop string, here and in transformers' `generate`.

    Only the newest tokens are decoded: a token adds at least one byte, so a stop string that has just been completed
    lies within as many tokens as it has bytes. It may be split into tokens in any way ("##" + "#", ".###").

    Args:
        tokenizer: decodes the generated ids.
        texts: the stop strings; an empty one never stops.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = [text for text in texts if text]
        self._window = max((len(text.encode()) for text in self.texts), default=0) + STOP_CONTEXT_TOKENS

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether the newest of these generated ids complete a stop string."""
        if not self.texts:
            return False
        newest = self.tokenizer.decode(ids[-self._window :])
        return any(text in newest for text in self.texts)

    def text_before(self, text: str) -> str:
        """What stands in front of the first stop string."""
        return text[: min((place for stop in self.texts if (place := text.find(stop)) >= 0), default=len(text))]

    def stable_text(self, text: str) -> str:
        """The part of a growing answer that later tokens cannot change: no incomplete stop string or character."""
        begun = (n for stop in self.texts for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        text = text[: len(text) - max(begun, default=0)]
        return text.rstrip(REPLACEMENT_CHARACTER).rstrip()

    def __call__(self, input_ids: LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows of generated ids (B, T) are done, (B,) bool."""
        done = [self.reached(row) for row in input_ids[:, -self._window :].tolist()]
        return torch.tensor(done, device=input_ids.device)
