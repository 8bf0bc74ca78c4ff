"""Generation settings as keywords."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import GenerationConfig, GenerationSettings, changed


def test_what_is_not_given_stays() -> None:
    base = GenerationConfig(max_new_tokens=7, top_p=0.5)
    assert changed(base, {"top_p": 1}) == GenerationConfig(max_new_tokens=7, top_p=1)
    assert base.top_p == 0.5


def test_the_keywords_are_the_configurations_fields() -> None:
    assert list(GenerationSettings.__annotations__) == [field.name for field in fields(GenerationConfig)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beam": 2}, "no setting 'num_beam'; did you mean 'num_beams'"),
        ({"num_beams": 2.0}, r"num_beams is 2\.0, should be of type int"),
        ({"do_sample": 1}, "do_sample is 1, should be of type bool"),
        ({"temperature": True}, "temperature is True, should be of type float"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, should be at least 1"),
        ({"top_p": 1.5}, r"top_p is 1\.5, should be at most 1"),
        ({"temperature": float("nan")}, "temperature is nan, should be above 0"),
    ],
)
def test_wrong_ones_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(GenerationConfig(), values)
