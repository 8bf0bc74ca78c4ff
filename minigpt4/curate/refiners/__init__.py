"""What corrects descriptions. Importing this package registers every refiner."""

from typing import Any

from minigpt4.common.registry import refiners
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner
from minigpt4.curate.refiners.endpoint import EndpointRefiner
from minigpt4.curate.refiners.local import LocalRefiner

__all__ = ["Correction", "EndpointRefiner", "LocalRefiner", "RefineError", "Refiner"]


@refiners.register("llm")
def _language_model(*args: Any, **kwargs: Any) -> Refiner:
    # The other refiners need no torch, which takes seconds to import.
    from minigpt4.curate.refiners.language_model import LanguageModelRefiner

    return LanguageModelRefiner(*args, **kwargs)
