"""Keys and values of sequences under way, one row each, and the two layouts of tokens that fill them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minigpt4.common.matmul import torchs_own_products
from minigpt4.models.packing import Layout, Packed


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

    def begin(self, layer: int, first_row: int, rows: int, prefix: KeyValueCache) -> None:
        """Let so many rows, whose own tokens are stored already, begin with the only row of another cache."""
        for kept, shared in zip((self._keys, self._values), prefix.read(layer, 1, prefix.length), strict=True):
            kept[layer][first_row : first_row + rows, :, : prefix.length] = shared

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Let a row take another's place."""
        for kept in (self._keys, self._values):
            for tensor in kept.values():
                tensor[target, :, :length] = tensor[source, :, :length]


class Prompts(Packed):
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
            self.cache.begin(_layer(module), self._first_row, len(self.lengths), self.prefix)
        return super().attend(module, query, key, value, scaling)

    def _seen(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return key, value
        first_key, first_value = (
            shared.to(key.dtype).expand(len(key), -1, -1, -1)
            for shared in self.prefix.read(_layer(module), 1, self.prefix.length)
        )
        return torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)


class NextTokens(Layout):
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
        with torchs_own_products():  # the matrices are too small for oneDNN to be worth its preparations
            scores = (grouped @ keys.mT).float().mul_(scaling).masked_fill_(~self._seen, -torch.inf)
            out = scores.softmax(dim=3).to(values.dtype) @ values
        return out.flatten(1, 2).unsqueeze(1)


def _layer(module: nn.Module) -> int:
    index: int = module.layer_idx  # type: ignore[assignment]
    return index
