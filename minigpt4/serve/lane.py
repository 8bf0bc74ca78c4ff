"""The answers of one language model: those that are worked on together, and the questions that wait for a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minigpt4.common.errors import ConfigError, counted
from minigpt4.models.attention import packable
from minigpt4.models.continuous_batching import REFILL_FRACTION, RunningBatch
from minigpt4.models.loading import free_memory
from minigpt4.serve.reply import CANCELLED, LENGTH, STOP, Reply

MOST_ROWS = 16
"""Answers at the same time where `serving.rows` does not say how many."""
MEMORY_SHARE = 0.5
"""Share of the free memory that their keys and values may then take."""
PREFILL_TOKENS = 4096
"""Tokens of the prompts that join together, at most, unless one alone has more: it bounds the memory of a prefill."""
STEPS_BETWEEN_JOINS = 8
"""Steps of the running answers between two joins: they wait for each join, and several prompts at once cost little more
than one."""
PATIENCE = 16
"""The same while more questions wait than rows are free, and few are."""


class Lane:
    """What is asked of one language model.

    Args:
        llm: the language model.
        rows: answers at the same time.
        length: tokens of the longest prompt with its answer.

    Attributes:
        rows: as given.
        waiting: questions that wait for a row, the oldest first.
        replies: those that are worked on, by the index of their request.
    """

    def __init__(self, llm: nn.Module, rows: int, length: int) -> None:
        self.rows = rows
        self.waiting: deque[Reply] = deque()
        self.replies: dict[int, Reply] = {}
        self._batch = RunningBatch(llm, rows, length)
        self._steps = 0  # since the last join
        if packable(llm):
            self._batch.allocate()

    def next_replies(self) -> list[Reply]:
        """Take the questions that join now from those that wait.

        Where nothing is worked on, they join at once.
        """
        free = self._batch.free
        crowded = len(self.waiting) > free and free < REFILL_FRACTION * self.rows
        if self.replies and self._steps < (PATIENCE if crowded else STEPS_BETWEEN_JOINS):
            return []
        taken: list[Reply] = []
        tokens = 0
        while self.waiting and len(taken) < free:
            tokens += self.waiting[0].request.length
            if taken and tokens > PREFILL_TOKENS:
                break
            taken.append(self.waiting.popleft())
        return taken

    def join(self, joining: Sequence[Reply], prompts: Sequence[Tensor]) -> None:
        """The first token of new answers; the complete answer where the generator cannot go token by token.

        Args:
            joining: from `next_replies`.
            prompts: embeddings of each, (T, D).
        """
        self._steps = 0
        together = [reply for reply in joining if reply.generator.streams]
        for reply, prompt in zip(joining, prompts, strict=True):
            if not reply.generator.streams:
                _answer_alone(reply, prompt)
        if together:
            self.replies |= {reply.request.index: reply for reply in together}
            prompts = [prompt for reply, prompt in zip(joining, prompts, strict=True) if reply.generator.streams]
            self._take(self._batch.join([reply.request for reply in together], prompts), together)

    def step(self) -> None:
        """One more token of each answer."""
        self._steps += 1
        stepped = [self.replies[request.index] for request in self._batch.requests]
        self._take(self._batch.step(), stepped)

    def remove(self, replies: Sequence[Reply]) -> None:
        """Work no longer on some answers."""
        for reply in replies:
            self.replies.pop(reply.request.index, None)
        self._batch.leave([request.index not in self.replies for request in self._batch.requests])

    def remove_cancelled(self) -> None:
        """Drop the answers whose requests were cancelled."""
        cancelled = [reply for reply in self.replies.values() if reply.cancelled]
        if cancelled:
            self.remove(cancelled)
            for reply in cancelled:
                reply.end(CANCELLED)

    def _take(self, logits: Tensor, stepped: Sequence[Reply]) -> None:
        """Add a token to each answer, and remove those that are complete."""
        for reply, token in zip(stepped, choose_tokens(logits, stepped), strict=True):
            reply.take(token)
        done = [reply for reply in stepped if reply.done]
        if done:
            self.remove(done)


def choose_tokens(logits: Tensor, replies: Sequence[Reply]) -> list[int]:
    """The next token of each answer, by its own settings; answers with equal ones are computed together.

    Args:
        logits: (B, vocabulary) float32; may be changed.
        replies: the B answers.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, reply in enumerate(replies):
        groups.setdefault(reply.sampling, []).append(row)
    tokens = [0] * len(replies)
    for rows in groups.values():
        group = [replies[row] for row in rows]
        chosen = group[0].generator.sample(
            logits if len(groups) == 1 else logits[rows],
            [reply.request.ids for reply in group],
            [reply.random for reply in group],
        )
        for row, token in zip(rows, chosen.tolist(), strict=True):
            tokens[row] = token
    return tokens


def rows_of_lanes(llm: nn.Module, rows: int | None, length: int, lanes: int) -> int:
    """Rows of each lane, for which there is memory.

    Args:
        llm: the language model of one of them; the others have as many layers.
        rows: as many as wanted; None: as many as are sensible.
        length: tokens of each row.
        lanes: number of lanes.

    Raises:
        ConfigError: There is no memory for so many.
    """
    if not packable(llm):  # such language models answer one question at a time, in a cache of their own
        return 1
    device = next(llm.parameters()).device
    needed = lanes * length * RunningBatch(llm, 1, 1).allocate()
    free = free_memory(device)
    sensible = max(1, min(MOST_ROWS, int(MEMORY_SHARE * free / needed)))
    rows = rows or sensible
    if rows * needed > free:
        raise ConfigError(
            f"serving.rows, serving.context: keys and values of {counted(rows, 'answers')} of {length:,} tokens take "
            f"{rows * needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device.type}; "
            + (f"set serving.rows={sensible}, or lower serving.context" if rows > sensible else "lower serving.context")
        )
    return rows


def _answer_alone(reply: Reply, prompt: Tensor) -> None:
    generator = reply.generator
    devices = [prompt.device] if prompt.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(reply.random.getrandbits(63))
        answer = generator.generate([prompt])[0]
    reply.tokens = len(answer.token_ids)
    full = reply.tokens >= reply.question.settings.max_new_tokens and not generator.stop.reached(answer.token_ids)
    reply.end(LENGTH if full else STOP, answer)
