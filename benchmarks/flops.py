"""Floating-point operations of a step, from the sizes of the matrices alone.

With frozen weights a token costs 4N in the language model: 2N forward, 2N for the gradient with respect to its
input; no gradient with respect to a weight is computed. The encoders cost 2N: nothing flows back through them.
"""

from __future__ import annotations

from benchmarks.presets import IMAGE_SIZE, VOCABULARY, Preset


def vision_forward(preset: Preset, images: int) -> float:
    """The ViT and the Q-Former on so many images."""
    patches = (IMAGE_SIZE // preset.patch) ** 2
    tokens = patches + 1
    block = 4 * preset.vit_width**2 + 2 * preset.vit_width * preset.vit_mlp
    attention = 2 * 2 * tokens * preset.vit_width
    vit = tokens * preset.vit_blocks * (2 * block + attention) + 2 * patches * preset.vit_width * 3 * preset.patch**2
    width, queries = preset.qformer_width, preset.queries
    layer = (4 + 8) * width**2
    crossing = (preset.qformer_layers + 1) // 2
    qformer = 2 * queries * preset.qformer_layers * layer
    qformer += crossing * (2 * queries * 2 * width**2 + 2 * tokens * 2 * preset.vit_width * width)
    return images * (vit + qformer)


def language_step(preset: Preset, rows: int, length: int, logits: int) -> float:
    """Forward and input gradients of the language model.

    Args:
        preset: sizes.
        rows: samples.
        length: tokens of each, padding included.
        logits: positions of each whose logits are computed.
    """
    layer = 4 * preset.llm_width**2 + 3 * preset.llm_width * preset.llm_mlp
    attention = 2 * 2 * length * preset.llm_width / 2  # causal: half of the square
    forward = rows * length * preset.llm_layers * (2 * layer + attention)
    head = 2 * rows * logits * preset.llm_width * VOCABULARY
    return 2 * (forward + head)
