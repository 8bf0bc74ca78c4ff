"""The configuration of generated answers."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt4.common.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    """How answers are generated."""

    max_new_tokens: int = 80
    min_new_tokens: int = 1
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    static_cache: bool = False
    """Let transformers generate with a cache of fixed size; on a GPU it then compiles the step of one token."""

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"generation: {name} is {getattr(self, name)}, should be at least {bound}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"generation: {name} is {getattr(self, name)}, should be above 0")
        if self.top_p > 1:
            raise ConfigError(f"generation: top_p is {self.top_p}, should be at most 1")
