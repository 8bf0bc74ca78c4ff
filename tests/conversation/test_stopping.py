from __future__ import annotations

import pytest
import torch

from minigpt4.models.generation import StopString
from tests.ascii_tokenizer import AsciiTokenizer

TOKENIZER = AsciiTokenizer()


def rows_of(*texts: str) -> torch.Tensor:
    width = max(map(len, texts))
    return torch.tensor([[0] * (width - len(text)) + TOKENIZER.encode(text) for text in texts])


def test_each_row_stops_at_its_own_stop_text() -> None:
    done = StopString(TOKENIZER, "###")(rows_of("a dog ###", "a cat ##", "x###Human"), None)
    assert done.tolist() == [True, False, False]


@pytest.mark.parametrize("text", ["ab###", "ab.###", "###"])
def test_characters_around_the_stop_text_do_not_hide_it(text: str) -> None:
    assert StopString(TOKENIZER, "###")(rows_of(text), None).tolist() == [True]


def test_an_empty_stop_text_never_stops() -> None:
    assert StopString(TOKENIZER, "")(rows_of("a", "b"), None).tolist() == [False, False]
