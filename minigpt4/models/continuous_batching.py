"""Continuous batching: prefill and decode steps over one KV cache, whose rows are refilled as prompts finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigpt4.common.matmul import for_products_of, torch_default_matmul
from minigpt4.models.attention import Layout, Packed, packed_attention

MIN_SHARED_TOKENS = 256
"""Tokens of computation saved from which on a shared prefix is worth a forward pass of its own."""
REFILL_FRACTION = 1 / 4
"""Share of the rows that must be free before new prompts are prefilled: several at once cost little more than one."""


def generate_batch(
    llm: nn.Module,
    prompts: Sequence[Tensor],
    sample: Callable[[Tensor, Sequence[Sequence[int]]], Tensor],
    finished: Callable[[Sequence[int]], bool],
    rows: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, list[int]]]:
    """(index of a prompt, its tokens so far) for each new token, in the order in which they are computed.

    Closing the iterator stops generation.

    Args:
        llm: a causal language model that is `packable`.
        prompts: embeddings of each prompt, (T, D).
        sample: (logits (B, vocabulary) float32, generated ids of each row) -> next ids, (B,).
        finished: whether the generated ids of a prompt are complete.
        rows: prompts decoded at the same time.
        max_new_tokens: longest answer.
    """
    rows = min(rows, len(prompts))
    prefix = _prefill_shared_prefix(llm, prompts)
    batch = RunningBatch(llm, rows, max(map(len, prompts), default=0) + max_new_tokens)
    waiting = deque(Request(index, len(prompt)) for index, prompt in enumerate(prompts))
    while waiting or batch.requests:
        if waiting and batch.free >= REFILL_FRACTION * rows:
            stepped = [waiting.popleft() for _ in range(min(batch.free, len(waiting)))]
            logits = batch.join(stepped, [prompts[request.index] for request in stepped], prefix)
        else:
            stepped = batch.requests
            logits = batch.step()
        tokens = sample(logits, [request.ids for request in stepped]).tolist()
        for request, token in zip(stepped, tokens, strict=True):
            request.ids.append(token)
            yield request.index, request.ids
        batch.leave([len(request.ids) >= max_new_tokens or finished(request.ids) for request in batch.requests])


@dataclass(slots=True)
class Request:
    """A prompt being answered.

    Attributes:
        index: index of the prompt.
        length: tokens in the cache.
        ids: generated ids.
    """

    index: int
    length: int
    ids: list[int] = field(default_factory=list)


class RunningBatch:
    """Prompts that are answered together; they join and leave between two steps.

    Whoever calls `join` or `step` appends a token to the ids of each request that logits were returned of.

    Args:
        llm: a causal language model that is `packable`.
        rows: prompts at the same time.
        length: tokens of the longest prompt with its answer.

    Attributes:
        requests: the prompts being answered; the position of each is its row of the cache.
    """

    def __init__(self, llm: nn.Module, rows: int, length: int) -> None:
        self.llm = llm
        self.requests: list[Request] = []
        self._cache = KeyValueCache(rows, length)
        self._largest_matrix = max((weight.numel() for weight in llm.parameters()), default=0)

    @property
    def free(self) -> int:
        """Prompts that can join."""
        return self._cache.rows - len(self.requests)

    def allocate(self) -> int:
        """Take the memory of the cache now, and not when the first prompt joins; its size in bytes."""
        embeddings: Any = self.llm.get_input_embeddings()  # type: ignore[operator]
        self.join([Request(0, 1)], [embeddings.weight[:1]])
        self.leave([True])
        return self._cache.bytes

    def join(
        self, requests: Sequence[Request], prompts: Sequence[Tensor], prefix: KeyValueCache | None = None
    ) -> Tensor:
        """Prefill; logits of the first token of each answer, (B, vocabulary) float32.

        Args:
            requests: at most `free` new ones.
            prompts: embeddings of each, (T, D).
            prefix: holds the tokens that all begin with, which are not computed again; None: there are none.
        """
        logits = _prefill(self.llm, prompts, self._cache, len(self.requests), prefix)
        self.requests = [*self.requests, *requests]
        return logits

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Add the newest token of each request to the cache; logits of the next ones, (B, vocabulary) float32."""
        newest = torch.tensor([[request.ids[-1], request.length] for request in self.requests])
        ids, positions = newest.to(next(self.llm.parameters()).device).split(1, dim=1)
        for request in self.requests:
            request.length += 1
        layout = DecodeLayout(self._cache, positions.squeeze(1), max(request.length for request in self.requests))
        with for_products_of(len(self.requests) * self._largest_matrix):
            return _logits(self.llm, input_ids=ids, position_ids=positions, layout=layout)[:, 0]

    def leave(self, done: Sequence[bool]) -> None:
        """Remove the requests that are done; the last of the others move into the rows that have become free.

        Args:
            done: whether each of `requests` is done.
        """
        running = [row for row, over in enumerate(done) if not over]
        kept = self.requests[: len(running)]
        movable = [row for row in running if row >= len(running)]
        gaps = [row for row in range(len(running)) if done[row]]
        for source, target in zip(movable, gaps, strict=True):
            self._cache.move(source, target, self.requests[source].length)
            kept[target] = self.requests[source]
        self.requests = kept


def _prefill_shared_prefix(llm: nn.Module, prompts: Sequence[Tensor]) -> KeyValueCache | None:
    """Keys and values of the prefix that all prompts share; None where a forward pass for it would not pay off."""
    length = shared_prefix_length(prompts)
    if length * (len(prompts) - 1) < MIN_SHARED_TOKENS:
        return None
    prefix = KeyValueCache(1, length)
    _prefill(llm, [prompts[0][:length]], prefix, 0)
    return prefix


@torch.inference_mode()
def shared_prefix_length(prompts: Sequence[Tensor]) -> int:
    """Tokens with which all prompts (T, D) begin, at most all but the last of the shortest."""
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
    """Fill the cache's rows from `first_row` on; logits of each prompt's next token, (B, vocabulary) float32.

    The tokens that `prefix` holds are not computed again.
    """
    if prefix is not None:
        prompts = [prompt[prefix.length :] for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    columns = torch.arange(int(lengths.max()))
    padded_positions = (columns < lengths[:, None]).flatten().nonzero().squeeze(1)
    device = prompts[0].device
    layout = PrefillLayout(lengths.tolist(), padded_positions.to(device), cache, first_row, prefix)
    return _logits(
        llm,
        inputs_embeds=torch.cat(list(prompts)).unsqueeze(0),
        position_ids=layout.positions.unsqueeze(0),
        logits_to_keep=(lengths.cumsum(0) - 1).to(device),
        layout=layout,
    )[0]


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    with packed_attention(llm):
        logits: Tensor = llm(use_cache=False, **inputs).logits
    return logits.to(torch.float32)


class KeyValueCache:
    """Keys and values of up to R sequences of up to T tokens, for each layer; allocated when a layer first writes.

    Args:
        rows: number of sequences, R.
        length: longest sequence, T.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows = rows
        self.length = length
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Memory of what was allocated."""
        return sum(tensor.nbytes for cached in (self._keys, self._values) for tensor in cached.values())

    def store(self, layer: int, rows: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Write n tokens.

        Args:
            layer: index of the layer.
            rows: row of each token, (n,).
            positions: position of each token in its row, (n,).
            key: (n, key heads, head width).
            value: (n, key heads, head width).
        """
        for cached, new in ((self._keys, key), (self._values, value)):
            if layer not in cached:
                cached[layer] = new.new_zeros(self.rows, new.shape[1], self.length, new.shape[2])
            cached[layer][rows, :, positions] = new

    def read(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """The first tokens of the first rows: keys and values, each (rows, key heads, length, head width)."""
        return self._keys[layer][:rows, :, :length], self._values[layer][:rows, :, :length]

    def copy_prefix(self, layer: int, first_row: int, rows: int, prefix: KeyValueCache) -> None:
        """Copy the only row of another cache to the beginning of `rows` rows, whose own tokens are stored already."""
        for cached, shared in zip((self._keys, self._values), prefix.read(layer, 1, prefix.length), strict=True):
            cached[layer][first_row : first_row + rows, :, : prefix.length] = shared

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one row over those of another."""
        for cached in (self._keys, self._values):
            for tensor in cached.values():
                tensor[target, :, :length] = tensor[source, :, :length]


class PrefillLayout(Packed):
    """New sequences, packed, that are stored in a cache.

    Args:
        lengths: tokens of each sequence.
        padded_positions: index of each token in the flattened batch with padding, (N,).
        cache: stores the sequences.
        first_row: row of the first sequence; the others follow.
        prefix: tokens in front of each sequence; None: there are none.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        padded_positions: Tensor,
        cache: KeyValueCache,
        first_row: int,
        prefix: KeyValueCache | None = None,
    ) -> None:
        super().__init__(lengths, padded_positions)
        self.cache = cache
        self.prefix = prefix
        self._first_row = first_row
        self._rows = first_row + padded_positions // max(lengths)
        self.positions = padded_positions % max(lengths) + (prefix.length if prefix else 0)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        tokens = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self.cache.store(_layer(module), self._rows, self.positions, *tokens)
        if self.prefix is not None:
            self.cache.copy_prefix(_layer(module), self._first_row, len(self.lengths), self.prefix)
        return super().attend(module, query, key, value, scaling)

    def _with_prefix(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return key, value
        prefix_key, prefix_value = (
            shared.to(key.dtype).expand(len(key), -1, -1, -1)
            for shared in self.prefix.read(_layer(module), 1, self.prefix.length)
        )
        return torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)


class DecodeLayout(Layout):
    """One more token for each of the first rows of a cache, (B, 1, ...).

    Args:
        cache: holds the tokens before.
        positions: position of each row's token, (B,), on the device.
        length: tokens of the longest row including this one; a plain number, so that no device is asked for it.
    """

    def __init__(self, cache: KeyValueCache, positions: Tensor, length: int) -> None:
        self.cache = cache
        self._rows = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        self._length = length
        self._visible = (torch.arange(length, device=positions.device) <= positions[:, None])[:, None, None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        layer = _layer(module)
        self.cache.store(layer, self._rows, self._positions, key.squeeze(2), value.squeeze(2))
        keys, values = self.cache.read(layer, len(query), self._length)
        if query.device.type == "cpu":
            return self._attend_unfused(query, keys, values, scaling)
        out: Tensor = sdpa_attention_forward(module, query, keys, values, self._visible, scaling=scaling)[0]
        return out

    def _attend_unfused(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """For a single token the CPU's fused attention is slower than two products, several times in bfloat16."""
        grouped = query.unflatten(1, (keys.shape[1], -1)).squeeze(3)
        with torch_default_matmul():  # the matrices are too small for oneDNN's preparations to pay off
            scores = (grouped @ keys.mT).float().mul_(scaling).masked_fill_(~self._visible, -torch.inf)
            out = scores.softmax(dim=3).to(values.dtype) @ values
        return out.flatten(1, 2).unsqueeze(1)


def _layer(module: nn.Module) -> int:
    index: int = module.layer_idx  # type: ignore[assignment]
    return index
