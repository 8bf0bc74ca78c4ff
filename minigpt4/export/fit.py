"""What can be exported for transformers, as far as the configuration tells; the weights tell the rest (`blip2.py`)."""

from __future__ import annotations

from minigpt4.common.errors import ExportError
from minigpt4.common.schema import ModelConfig

INSTEAD = "minigpt4 chat, generate and demo run it, and --language-model-only merges its adapters for them"
"""What to do with a model that transformers has no class for."""


def check_exportable(cfg: ModelConfig) -> None:
    """Refuse models that no transformers class can run, and random ones, before any weight is read.

    Without a Q-Former, four neighbouring patches of a row are joined (`merged_patches.py`). transformers' LLaVA
    projects each patch alone; the classes that join patches join squares of 2 x 2, behind other towers.

    Args:
        cfg: section `model`.

    Raises:
        ExportError: The message names the setting and the reason.
    """
    if not cfg.has_qformer:
        raise ExportError(
            f"model.has_qformer: {cfg.arch} without a Q-Former joins four neighbouring patches in front of its "
            "projection, and no class of transformers does (LlavaForConditionalGeneration projects each patch alone); "
            f"{INSTEAD}"
        )
    for key, path in cfg.image_encoder_files().items():
        if not path:
            raise ExportError(f"model.{key} is not set: a random network is not exported; name the file of its weights")
