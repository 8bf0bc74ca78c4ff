"""Float32 matrix products on a CPU by oneDNN, on processors where it computes them exactly.

torch multiplies float32 matrices by MKL, which uses half the vector width of AMD processors, and reads the weights
several times where there are few rows. oneDNN does neither, but torch uses it only when it is allowed to round to
bfloat16. On processors with matrix units for bfloat16 it does round; on others it computes in float32 all the same. A
few products show which of the two happens here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)
SMALL_PRODUCT = 2**21
"""Multiplications up to which preparing a matrix product or waking another thread takes longer than it saves."""
PROBED_ROWS = (1, 8, 64, 700, 2048)
"""Rows of the probed matrices: libraries choose a kernel by shape."""
PROBED_WIDTH = 512
"""Inner size of the probed products."""
TOLERANCE = 1e-3
"""Error of a sum of 512 products of normal numbers: float32 is off by 1e-5, bfloat16 and TF32 by more than this."""


def use_onednn_if_exact() -> bool:
    """Let oneDNN multiply float32 matrices if it rounds nothing on this processor; whether it does now."""
    if not torch.backends.mkldnn.is_available():
        return False
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if _exact():
        logger.debug("float32 products: oneDNN")
        return True
    settings.fp32_precision = before
    logger.debug("float32 products: torch's default, because oneDNN would round them")
    return False


@contextmanager
def torch_default_matmul() -> Iterator[None]:
    """Within this context, torch chooses the library for float32 products as it does by default."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "none"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def for_products_of(multiplications: int) -> Iterator[None]:
    """Within this context, a CPU computes small matrix products by one thread and torch's default library.

    Args:
        multiplications: number of multiplications in the largest matrix product.
    """
    if multiplications > SMALL_PRODUCT:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch_default_matmul():
            yield
    finally:
        torch.set_num_threads(threads)


def _exact() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(PROBED_WIDTH, PROBED_WIDTH, generator=generator)
    for rows in PROBED_ROWS:
        left = torch.randn(rows, PROBED_WIDTH, generator=generator)
        exact = left.double() @ weight.double()
        if (left @ weight - exact).abs().max() > TOLERANCE:
            return False
        if (torch.nn.functional.linear(left, weight.T.contiguous()) - exact).abs().max() > TOLERANCE:
            return False
    return True
