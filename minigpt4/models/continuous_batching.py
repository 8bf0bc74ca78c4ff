"""Continuous batching: prefill and decode step over one KV cache, whose rows are refilled as prompts finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigpt4.common.matmul import torch_default_matmul
from minigpt4.models.attention import Layout, Packed, packed_attention


class KeyValueCache:
    """Room for R sequences of up to T tokens, for every layer; taken when a layer first writes.

    Args:
        rows: R.
        length: T.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows = rows
        self.length = length
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def store(self, layer: int, rows: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Write n tokens.

        Args:
            layer: Of the model.
            rows: Of each token, (n,).
            positions: Of each token in its row, (n,).
            key: (n, heads, width of a head).
            value: The same.
        """
        for kept, new in ((self._keys, key), (self._values, value)):
            if layer not in kept:
                kept[layer] = new.new_zeros(self.rows, new.shape[1], self.length, new.shape[2])
            kept[layer][rows, :, positions] = new

    def read(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """The first tokens of the first rows: keys and values, each (rows, heads, length, width of a head)."""
        return self._keys[layer][:rows, :, :length], self._values[layer][:rows, :, :length]

    def copy_prefix(self, layer: int, first_row: int, rows: int, prefix: KeyValueCache) -> None:
        """Let so many rows, whose own tokens are stored already, begin with the only row of another cache."""
        for kept, shared in zip((self._keys, self._values), prefix.read(layer, 1, prefix.length), strict=True):
            kept[layer][first_row : first_row + rows, :, : prefix.length] = shared

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Let a row take another's place."""
        for kept in (self._keys, self._values):
            for tensor in kept.values():
                tensor[target, :, :length] = tensor[source, :, :length]


class PrefillLayout(Packed):
    """New sequences, packed one behind the other, that are kept for what will follow them.

    Args:
        lengths: Tokens of each.
        places: Where each token stands among the new sequences, padded, flattened, (N,).
        cache: Keeps them.
        first_row: Of the cache; the sequences take the rows from there on.
        prefix: Holds the tokens that stand in front of each sequence; None: there are none.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        places: Tensor,
        cache: KeyValueCache,
        first_row: int,
        prefix: KeyValueCache | None = None,
    ) -> None:
        super().__init__(lengths, places)
        self.cache = cache
        self.prefix = prefix
        self._first_row = first_row
        self._rows = first_row + places // max(lengths)
        self.positions = places % max(lengths) + (prefix.length if prefix else 0)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        tokens = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self.cache.store(_layer(module), self._rows, self.positions, *tokens)
        if self.prefix is not None:
            self.cache.copy_prefix(_layer(module), self._first_row, len(self.lengths), self.prefix)
        return super().attend(module, query, key, value, scaling)

    def _seen(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return key, value
        first_key, first_value = (
            shared.to(key.dtype).expand(len(key), -1, -1, -1)
            for shared in self.prefix.read(_layer(module), 1, self.prefix.length)
        )
        return torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)


class DecodeLayout(Layout):
    """One more token for each of the first rows of a cache, (B, 1, ...).

    Args:
        cache: Holds what came before.
        positions: Where each row's token stands, (B,), on the device.
        length: Tokens of the longest row, this one included; a plain number.
    """

    def __init__(self, cache: KeyValueCache, positions: Tensor, length: int) -> None:
        self.cache = cache
        self._rows = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        self._length = length
        self._seen = (torch.arange(length, device=positions.device) <= positions[:, None])[:, None, None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        layer = _layer(module)
        self.cache.store(layer, self._rows, self._positions, key.squeeze(2), value.squeeze(2))
        keys, values = self.cache.read(layer, len(query), self._length)
        if query.device.type == "cpu":
            return self._by_products(query, keys, values, scaling)
        out: Tensor = sdpa_attention_forward(module, query, keys, values, self._seen, scaling=scaling)[0]
        return out

    def _by_products(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """For a single token the CPU's fused attention is slower than two products, several times in bfloat16."""
        grouped = query.unflatten(1, (keys.shape[1], -1)).squeeze(3)
        with torch_default_matmul():  # the matrices are too small for oneDNN to be worth its preparations
            scores = (grouped @ keys.mT).float().mul_(scaling).masked_fill_(~self._seen, -torch.inf)
            out = scores.softmax(dim=3).to(values.dtype) @ values
        return out.flatten(1, 2).unsqueeze(1)


def _layer(module: nn.Module) -> int:
    index: int = module.layer_idx  # type: ignore[assignment]
    return index


MIN_SHARED_TOKENS = 256
"""Tokens that need not be read again, from which on a forward pass of its own for what prompts share pays off."""
REFILL_FRACTION = 1 / 4
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


def generate_batch(
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
        rows: PrefillLayout continued at the same time.
        max_new_tokens: Ids of a prompt at most.
    """
    rows = min(rows, len(prompts))
    prefix = _prefill_shared_prefix(llm, prompts)
    cache = KeyValueCache(rows, max(map(len, prompts), default=0) + max_new_tokens)
    waiting = deque(Continuation(number, len(prompt)) for number, prompt in enumerate(prompts))
    active: list[Continuation] = []
    while waiting or active:
        free = rows - len(active)
        if waiting and free >= REFILL_FRACTION * rows:
            asked = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            logits = _prefill(llm, [prompts[new.number] for new in asked], cache, len(active), prefix)
            active += asked
        else:
            asked = active
            logits = _decode_step(llm, active, cache)
        chosen = choose(logits, [continuation.ids for continuation in asked]).tolist()
        for continuation, token in zip(asked, chosen, strict=True):
            continuation.ids.append(token)
            yield continuation.number, continuation.ids
        finished = [len(one.ids) >= max_new_tokens or done(one.ids) for one in active]
        active = _close_gaps(active, finished, cache)


def _prefill_shared_prefix(llm: nn.Module, prompts: Sequence[Tensor]) -> KeyValueCache | None:
    """What all prompts begin with, read once; None where that would not be worth a pass of its own."""
    shared = shared_tokens(prompts)
    if shared * (len(prompts) - 1) < MIN_SHARED_TOKENS:
        return None
    prefix = KeyValueCache(1, shared)
    _prefill(llm, [prompts[0][:shared]], prefix, 0)
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
def _prefill(
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
    layout = PrefillLayout(lengths.tolist(), places.to(device), cache, first_row, prefix)
    return _logits(
        llm,
        inputs_embeds=torch.cat(list(prompts)).unsqueeze(0),
        position_ids=layout.positions.unsqueeze(0),
        logits_to_keep=(lengths.cumsum(0) - 1).to(device),
        layout=layout,
    )[0]


@torch.inference_mode()
def _decode_step(llm: nn.Module, active: Sequence[Continuation], cache: KeyValueCache) -> Tensor:
    """Logits behind the newest token of each row, float32 (B, vocabulary)."""
    newest = torch.tensor([[one.ids[-1], one.length] for one in active]).to(next(llm.parameters()).device)
    ids, positions = newest[:, :1], newest[:, 1:]
    for one in active:
        one.length += 1
    layout = DecodeLayout(cache, positions.squeeze(1), max(one.length for one in active))
    return _logits(llm, input_ids=ids, position_ids=positions, layout=layout)[:, 0]


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    with packed_attention(llm):
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
