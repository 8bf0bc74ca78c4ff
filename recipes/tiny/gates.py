"""What each part must be able to do before the next one is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from minigpt4.common.errors import MiniGPT4Error

logger = logging.getLogger(__name__)

LANGUAGE_GATES = {
    "largest": 0.98,
    "all objects": 0.97,
    "sizes": 0.95,
    "true": 0.7,
    "empty": 0.9,
    "asked largest colour": 0.9,
    "asked largest shape": 0.9,
    "asked largest": 0.9,
    "asked smallest": 0.9,
    "asked background": 0.9,
}
"""Questions that begin by finding a named object (where is ..., is there ...) are logged, not gated: see the README."""
VISION_GATES = {"colour 0": 0.97, "shape 0": 0.94, "row 0": 0.95, "column 0": 0.95, "shape 2": 0.8, "background": 0.95}


class GateError(MiniGPT4Error):
    """A part of the model is not yet good enough for the next part."""


def language_gates(scores: Mapping[str, float]) -> dict[str, float]:
    """The least that each of the language model's oracle scores must be; some scores have no gate."""
    return {name: gate for name, gate in LANGUAGE_GATES.items() if name in scores}


def check(part: str, scores: Mapping[str, float], gates: Mapping[str, float]) -> None:
    """Log every score with its gate.

    Raises:
        GateError: scores below their gates; all of them are named.
    """
    for name, value in scores.items():
        logger.info("%s  %-22s %.3f%s", part, name, value, f"  (gate {gates[name]})" if name in gates else "")
    failed = [f"{name} {scores[name]:.3f} < {gate}" for name, gate in gates.items() if scores[name] < gate]
    if failed:
        raise GateError(f"{part} is not good enough: {'; '.join(failed)}. Train it longer (--{part}-steps N)")
