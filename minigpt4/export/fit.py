"""What can be exported for transformers, as far as the configuration tells; the weights tell the rest (`blip2.py`)."""

from __future__ import annotations

from minigpt4.common.errors import ExportError
from minigpt4.common.schema import ClassToken, ModelConfig, Projector

INSTEAD = "minigpt4 chat, generate and demo run it, and --language-model-only merges its adapters for them"
"""What to do with a model that transformers has no class for."""


def check_exportable(cfg: ModelConfig) -> None:
    """Refuse models that no transformers class can run, and random ones, before any weight is read.

    Without a Q-Former, neighbouring patches of a row are joined (`merged_patches.py`), four in the published models.
    transformers' LLaVA projects each patch alone, without the norm in front; the classes that join patches join squares
    of 2 x 2, behind other towers.

    Args:
        cfg: section `model`.

    Raises:
        ExportError: The message names the setting and the reason.
    """
    if not cfg.has_qformer:
        joined = {1: "normalises each patch", 4: "joins four neighbouring patches"}
        does = joined.get(cfg.joined_patches, f"joins {cfg.joined_patches} neighbouring patches")
        raise ExportError(
            f"model.has_qformer: {cfg.arch} without a Q-Former {does} in front of its projection, "
            "and no class of transformers does (LlavaForConditionalGeneration projects each patch alone, "
            f"without a norm); {INSTEAD}"
        )
    if cfg.projector is not Projector.linear:
        raise ExportError(
            f"model.projector: {cfg.projector.value}, but Blip2ForConditionalGeneration has one linear layer; {INSTEAD}"
        )
    if cfg.vit_class_token is ClassToken.drop:
        raise ExportError(
            "model.vit_class_token: drop, but Blip2ForConditionalGeneration shows the class token to its Q-Former; "
            f"{INSTEAD}"
        )
    for key, path in cfg.image_encoder_files().items():
        if not path:
            raise ExportError(f"model.{key} is not set: a random network is not exported; name the file of its weights")
