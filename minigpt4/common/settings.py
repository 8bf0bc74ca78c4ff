"""Generation settings given as keywords: checked by name, type and range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypedDict, get_type_hints

from minigpt4.common.errors import ConfigError, did_you_mean
from minigpt4.common.schema import GenerationConfig


class GenerationSettings(TypedDict, total=False):
    """The fields of `GenerationConfig` as keywords."""

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    do_sample: bool
    temperature: float
    top_p: float
    repetition_penalty: float
    length_penalty: float
    static_cache: bool


def changed(settings: GenerationConfig, values: Mapping[str, Any]) -> GenerationConfig:
    """`settings` with some of them replaced.

    Args:
        settings: What holds where nothing is given.
        values: Field names -> values.

    Raises:
        ConfigError: An unknown name, a wrong type, or a value out of range.
    """
    types = get_type_hints(GenerationConfig)
    known = [field.name for field in fields(GenerationConfig)]
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"generation: no setting '{name}'; {did_you_mean(name, known)}")
        kind = types[name]
        # True is an int to Python, and 1 a fine temperature.
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise ConfigError(f"generation: {name} is {value!r}, should be of type {kind.__name__}")
    return replace(settings, **values)
