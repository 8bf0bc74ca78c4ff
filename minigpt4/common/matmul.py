"""Float32 matrix products on a CPU by the library that is fastest at them, where it keeps float32's exactness.

torch multiplies float32 matrices by MKL, which leaves half of an AMD processor's vector width unused, and reads the
weights several times over where there are few rows. oneDNN does neither; torch hands it the products once it may round
to bfloat16 within them. On processors with matrix units for bfloat16 it then really rounds; elsewhere it computes in
float32 all the same. Which of the two happens here is looked at, not assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)
ROWS = (1, 8, 64, 700, 2048)
"""Shapes that are tried; a library chooses its ways by shape."""
WIDTH = 512
TOLERANCE = 1e-3
"""Of sums of 512 products of normal numbers: float32 is off by 1e-5, rounding to bfloat16 or TF32 by more than this."""


def use_onednn_if_exact() -> bool:
    """Let oneDNN multiply float32 matrices, if that costs no exactness on this processor; say whether it does."""
    if not torch.backends.mkldnn.is_available():
        return False
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if _exact():
        logger.debug("float32 products: oneDNN")
        return True
    settings.fp32_precision = before
    logger.debug("float32 products: as torch is set, because oneDNN would round them")
    return False


def _exact() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    for rows in ROWS:
        left = torch.randn(rows, WIDTH, generator=generator)
        exact = left.double() @ weight.double()
        if (left @ weight - exact).abs().max() > TOLERANCE:
            return False
        if (torch.nn.functional.linear(left, weight.T.contiguous()) - exact).abs().max() > TOLERANCE:
            return False
    return True


@contextmanager
def torch_default_matmul() -> Iterator[None]:
    """Inside, float32 matrices are multiplied as torch does it by default."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "none"
    try:
        yield
    finally:
        settings.fp32_precision = before
