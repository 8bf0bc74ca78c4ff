"""Who corrects descriptions. Importing this package registers every refiner."""

from minigpt4.curate.refiners.base import Correction, RefineError, Refiner
from minigpt4.curate.refiners.endpoint import EndpointRefiner
from minigpt4.curate.refiners.language_model import LanguageModelRefiner
from minigpt4.curate.refiners.local import LocalRefiner

__all__ = ["Correction", "EndpointRefiner", "LanguageModelRefiner", "LocalRefiner", "RefineError", "Refiner"]
