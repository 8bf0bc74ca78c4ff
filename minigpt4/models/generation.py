"""Prompt embeddings -> answers: the one way by which evaluation, command line and chat generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import StoppingCriteriaList

from minigpt4.common.schema import GenerationConfig
from minigpt4.conversation.stopping import StopAtText, settled
from minigpt4.conversation.tokenizer import Tokenizer
from minigpt4.models.choosing import TokenChoice
from minigpt4.models.decoding import decode
from minigpt4.models.multimodal_inputs import left_padded
from minigpt4.models.packing import packable


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

    Greedy answers and samples are decoded by `decode`; beams, a static cache, and language models whose attention is
    of another kind, by transformers' `generate`.

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
        self.stop = StopAtText(tokenizer, stop)

    def answers(self, prompts: Sequence[Tensor], rows: int | None = None) -> list[Answer]:
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
            answers |= zip(batch, self.by_transformers([prompts[number] for number in batch]), strict=True)
        return [answers[number] for number in range(len(prompts))]

    def stream(self, prompt: Tensor) -> Iterator[Answer]:
        """The answer to one prompt (T, D) as it grows, a token at a time; the work stops with the caller's interest.

        What has only begun (a character, a stop text) is held back until it is known what it becomes; the last item is
        the whole answer. Where `streams` is False, only that comes.
        """
        if not self.streams:
            yield from self.answers([prompt])
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
            return ids[-1] == eos or self.stop.written(ids)

        return decode(self.llm, prompts, TokenChoice(self.settings, eos), done, rows, self.settings.max_new_tokens)

    def by_transformers(self, prompts: Sequence[Tensor]) -> list[Answer]:
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
