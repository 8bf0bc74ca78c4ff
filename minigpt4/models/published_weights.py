"""Our parameter names <-> those of published checkpoints, and strict loading.

The tensors that a published file may hold beside those of the model are listed here by pattern; anything else that is
missing or unexpected is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minigpt4.common.errors import CheckpointError, first_few

QFORMER_PREFIX = "Qformer.bert."
QFORMER_UNUSED = (
    r"Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings)\.|.*position_ids$",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.",
    r"Qformer\.cls\.|(t5|opt|llm|vision|text)_proj\.|itm_head\.|temp$",
    r"visual_encoder\.|(t5_model|opt_model|llm_model)\.",
)
"""Text branch, heads and other models' projections in BLIP-2's files."""
VIT_UNUSED = (r"(norm|fc_norm|head)\.", r".*attn\.(k_bias|relative_position_index)$")
"""Final norm and classifier, which come after the features."""
CHECKPOINT_UNUSED = (r".*rotary_emb\.inv_freq$", r".*position_ids$")
"""Buffers beside the trained tensors in published training checkpoints."""
_RENAMED = (
    (r"^embeddings\.LayerNorm\.", "layernorm."),
    (r"(cross)?attention\.self\.", r"\1attention.attention."),
)
"""Parts of BLIP-2's names and what transformers calls them."""


def load_strictly(
    module: nn.Module,
    state: dict[str, Tensor],
    source: str,
    *,
    dtype: torch.dtype | None,
    device: Any,
    in_float32: tuple[str, ...] = (),
) -> None:
    """Load `state` into `module`, whose parameters may be on the meta device, tensor by tensor.

    A tensor that needs no conversion is not copied: one that is mapped from a file stays mapped, and takes no memory of
    the process.

    Args:
        module: every one of its parameters must be in `state`, and nothing else.
        state: tensors by the module's own names; emptied, so that no more than one tensor is held twice.
        source: file name for messages.
        dtype: number format of floating-point tensors; None: that of `state`.
        device: device of the tensors.
        in_float32: prefixes of names that are converted to float32 instead.

    Raises:
        CheckpointError: Missing or unexpected names, or a shape that does not fit.
    """
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    if missing or unexpected:
        found = {"missing": missing, "unexpected": unexpected}
        report = "; ".join(f"{label}: {first_few(names, 3)}" for label, names in found.items() if names)
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {report}")
    wrong = [name for name in wanted if wanted[name].shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(state[name].shape)}, the model expects {tuple(wanted[name].shape)}"
            f" ({len(wrong)} tensor(s) differ); check the model's sizes in the configuration"
        )
    placed = {}
    for name in list(state):
        moved = state.pop(name).to(device)  # before the conversion, which an accelerator does faster
        wanted_dtype = torch.float32 if name.startswith(in_float32) else dtype
        placed[name] = moved.to(wanted_dtype) if wanted_dtype and moved.is_floating_point() else moved
    module.load_state_dict(placed, strict=True, assign=True)


def unexpected_keys(names: Iterable[str], used: Iterable[str], unused: tuple[str, ...]) -> list[str]:
    """Names that are neither used nor match a pattern of `unused`."""
    known = set(used)
    return [name for name in names if name not in known and not _matches(name, unused)]


def qformer_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BLIP-2's `Qformer.bert.*` tensors under the names of transformers' `Blip2QFormerModel`."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(QFORMER_PREFIX) and not _matches(name, QFORMER_UNUSED):
            ours = name.removeprefix(QFORMER_PREFIX)
            for pattern, replacement in _RENAMED:
                ours = re.sub(pattern, replacement, ours)
            renamed[ours] = tensor
    return renamed


def qformer_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `qformer_from_published`."""
    renamed = {}
    for name, tensor in state.items():
        theirs = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)
        theirs = re.sub(r"(cross)?attention\.attention\.", r"\1attention.self.", theirs)
        renamed[QFORMER_PREFIX + theirs] = tensor
    return renamed


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)
