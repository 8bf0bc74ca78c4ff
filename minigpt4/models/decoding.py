"""Continuing many prompts at once, token by token: a prompt that is done gives its place to the next one waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minigpt4.models.kv_cache import KeyValueCache, NextTokens, Prompts
from minigpt4.models.packing import attention_by_layout

WORTH_A_PASS = 256
"""Tokens that need not be read again, from which on a forward pass of its own for what prompts share pays off."""
REFILL = 4
"""New prompts are read when one row in so many has become free: several at once cost little more than one."""


@dataclass(slots=True)
class Continuation:
    """A prompt under way; its place among the active ones is its row of the cache.

    Attributes:
        number: Of the prompt, as given.
        length: Tokens in the cache.
        ids: What was generated.
    """

    number: int
    length: int
    ids: list[int] = field(default_factory=list)


def decode(
    llm: nn.Module,
    prompts: Sequence[Tensor],
    choose: Callable[[Tensor, Sequence[Sequence[int]]], Tensor],
    done: Callable[[Sequence[int]], bool],
    rows: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, list[int]]]:
    """(number of a prompt, its ids so far) for each new token, in the order in which they are computed.

    The work stops where the caller stops iterating.

    Args:
        llm: A causal language model that is `packable`.
        prompts: Embeddings of each, (T, D).
        choose: (logits (B, vocabulary) float32, ids generated so far in each row) -> next ids, (B,).
        done: Whether a prompt's ids are complete.
        rows: Prompts continued at the same time.
        max_new_tokens: Ids of a prompt at most.
    """
    rows = min(rows, len(prompts))
    prefix = _read_prefix(llm, prompts)
    cache = KeyValueCache(rows, max(map(len, prompts), default=0) + max_new_tokens)
    waiting = deque(Continuation(number, len(prompt)) for number, prompt in enumerate(prompts))
    active: list[Continuation] = []
    while waiting or active:
        free = rows - len(active)
        if waiting and free * REFILL >= rows:
            asked = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            logits = _read_prompts(llm, [prompts[new.number] for new in asked], cache, len(active), prefix)
            active += asked
        else:
            asked = active
            logits = _read_next(llm, active, cache)
        chosen = choose(logits, [continuation.ids for continuation in asked]).tolist()
        for continuation, token in zip(asked, chosen, strict=True):
            continuation.ids.append(token)
            yield continuation.number, continuation.ids
        finished = [len(one.ids) >= max_new_tokens or done(one.ids) for one in active]
        active = _close_gaps(active, finished, cache)


def _read_prefix(llm: nn.Module, prompts: Sequence[Tensor]) -> KeyValueCache | None:
    """What all prompts begin with, read once; None where that would not be worth a pass of its own."""
    shared = shared_tokens(prompts)
    if shared * (len(prompts) - 1) < WORTH_A_PASS:
        return None
    prefix = KeyValueCache(1, shared)
    _read_prompts(llm, [prompts[0][:shared]], prefix, 0)
    return prefix


@torch.inference_mode()
def shared_tokens(prompts: Sequence[Tensor]) -> int:
    """Tokens with which all prompts (T, D) begin, up to but not including the last one of the shortest."""
    shortest = min(map(len, prompts), default=1) - 1
    if len(prompts) < 2 or shortest == 0:
        return 0
    heads = torch.stack([prompt[:shortest] for prompt in prompts])
    return int((heads == heads[0]).all(dim=2).all(dim=0).cumprod(0).sum())


@torch.inference_mode()
def _read_prompts(
    llm: nn.Module,
    prompts: Sequence[Tensor],
    cache: KeyValueCache,
    first_row: int,
    prefix: KeyValueCache | None = None,
) -> Tensor:
    """Logits behind each prompt, float32 (B, vocabulary); the cache's rows from `first_row` on are filled.

    Of each prompt, what `prefix` holds is not read again.
    """
    if prefix is not None:
        prompts = [prompt[prefix.length :] for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    columns = torch.arange(int(lengths.max()))
    places = (columns < lengths[:, None]).flatten().nonzero().squeeze(1)
    device = prompts[0].device
    layout = Prompts(lengths.tolist(), places.to(device), cache, first_row, prefix)
    return _logits(
        llm,
        inputs_embeds=torch.cat(list(prompts)).unsqueeze(0),
        position_ids=layout.positions.unsqueeze(0),
        logits_to_keep=(lengths.cumsum(0) - 1).to(device),
        layout=layout,
    )[0]


@torch.inference_mode()
def _read_next(llm: nn.Module, active: Sequence[Continuation], cache: KeyValueCache) -> Tensor:
    """Logits behind the newest token of each row, float32 (B, vocabulary)."""
    newest = torch.tensor([[one.ids[-1], one.length] for one in active]).to(next(llm.parameters()).device)
    ids, positions = newest[:, :1], newest[:, 1:]
    for one in active:
        one.length += 1
    layout = NextTokens(cache, positions.squeeze(1), max(one.length for one in active))
    return _logits(llm, input_ids=ids, position_ids=positions, layout=layout)[:, 0]


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    with attention_by_layout(llm):
        logits: Tensor = llm(use_cache=False, **inputs).logits
    return logits.to(torch.float32)


def _close_gaps(active: Sequence[Continuation], finished: Sequence[bool], cache: KeyValueCache) -> list[Continuation]:
    """Those that are not finished, the last ones moved into the rows that have become free."""
    going_on = [row for row, over in enumerate(finished) if not over]
    kept = list(active[: len(going_on)])
    movable = [row for row in going_on if row >= len(going_on)]
    gaps = [row for row in range(len(going_on)) if finished[row]]
    for source, target in zip(movable, gaps, strict=True):
        cache.move(source, target, active[source].length)
        kept[target] = active[source]
    return kept
