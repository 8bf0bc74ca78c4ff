from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from minigpt4.common import matmul
from minigpt4.common.matmul import SMALL_PRODUCT, for_products_of, torch_default_matmul, use_onednn_if_exact

SETTINGS = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def setting_restored() -> Iterator[None]:
    with torch_default_matmul():
        yield


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_products_are_exact_float32_whatever_was_chosen() -> None:
    chosen = use_onednn_if_exact()
    assert chosen == (SETTINGS.fp32_precision == "bf16")
    generator = torch.Generator().manual_seed(1)
    for rows, inner, columns in ((3, 64, 5000), (130, 700, 90), (1000, 512, 1376)):
        left, right = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
        difference = (left @ right - left.double() @ right.double()).abs().max()
        assert difference < 2e-4


def test_a_processor_that_rounds_keeps_torchs_default(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__

    def rounding(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return plain(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    before = SETTINGS.fp32_precision
    assert use_onednn_if_exact() is False
    assert SETTINGS.fp32_precision == before


def test_the_check_tells_float32_from_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.functional.linear

    def shortened(tensor: torch.Tensor) -> torch.Tensor:
        """With the 10 mantissa bits of TF32."""
        return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)

    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: exact(shortened(x), shortened(w)))
    assert not matmul._exact()


def test_the_setting_is_restored() -> None:
    SETTINGS.fp32_precision = "bf16"
    with pytest.raises(ZeroDivisionError), torch_default_matmul():
        assert SETTINGS.fp32_precision == "none"
        raise ZeroDivisionError
    assert SETTINGS.fp32_precision == "bf16"


@pytest.mark.parametrize(("products", "expected"), [(SMALL_PRODUCT, (1, "none")), (SMALL_PRODUCT + 1, (3, "bf16"))])
def test_small_products_are_left_to_one_thread_and_torchs_default(products: int, expected: tuple[int, str]) -> None:
    SETTINGS.fp32_precision = "bf16"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError), for_products_of(products):
            assert (torch.get_num_threads(), SETTINGS.fp32_precision) == expected
            raise ZeroDivisionError
        assert (torch.get_num_threads(), SETTINGS.fp32_precision) == (3, "bf16")
    finally:
        torch.set_num_threads(threads)
