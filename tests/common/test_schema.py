"""Generation settings as keywords, and values that no range of a field covers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import (
    GenerationConfig,
    GenerationSettings,
    LoraConfig,
    ModelConfig,
    check_values,
    override_generation,
)


def test_the_others_are_unchanged() -> None:
    base = GenerationConfig(max_new_tokens=7, top_p=0.5)
    assert override_generation(base, {"top_p": 1}) == GenerationConfig(max_new_tokens=7, top_p=1)
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
        ({"max_new_tokens": 0}, "generation.max_new_tokens: 0 should be at least 1"),
        ({"top_p": 1.5}, r"top_p: 1\.5 should be above 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature: nan should be a finite number"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override_generation(GenerationConfig(), values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelConfig(lora=LoraConfig(r=2**31)), r"^model\.lora\.r: 2147483648 should be at least 0 and at most 8192"),
        (ModelConfig(vit_blocks=2**31), r"^model\.vit_blocks: 2147483648 should be at least 1 and at most 1000"),
    ],
)
def test_numbers_that_no_machine_has_memory_for_are_refused(settings: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_values(settings, "model.")


@pytest.mark.parametrize("section", ["vit_args", "q_former_args"])
@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf")])
def test_sizes_of_the_encoders_are_not_negative(section: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.{section}\.size: .* should be a finite number of at least 0"):
        check_values(ModelConfig(**{section: {"size": value}}), "model.")
    check_values(ModelConfig(**{section: {"size": 4, "name": "gelu", "flag": True}}), "model.")
