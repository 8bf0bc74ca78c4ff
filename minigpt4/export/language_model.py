"""Adapters merged into a folder of the language model, with the projection beside it, for this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import language_model_folder, writing
from minigpt4.common.schema import ModelConfig
from minigpt4.export.folder import new_folder_of

LANGUAGE_MODEL = "language_model"
"""Folder of the merged language model in the exported folder."""
PROJECTION = "projection.safetensors"
"""The checkpoint's projection, for the merged language model."""
NOT_COPIED = ("*.safetensors", "*.bin", "*.index.json", "config.json", "generation_config.json", ".*")
"""What is not copied from the language model's folder: its weights, what describes them, and hidden files, one of which
may be the export itself."""


def merge_language_model(cfg: ModelConfig, folder: Path) -> str:
    """Write the language model with the adapters of `model.ckpt` merged into it, and the projection beside it.

    The weights keep the number format of their files. The folder appears once it is complete.

    Args:
        cfg: model with adapters and a checkpoint, not quantised.
        folder: new folder.

    Returns:
        The options that load both.

    Raises:
        ConfigError: There are no adapters.
        CheckpointError: The checkpoint does not fit.
        DataError: The folder cannot be written.
    """
    if not cfg.lora.r:
        raise ConfigError("model.lora.r: the model has no adapters to merge; set it to the checkpoint's rank")

    import torch
    from safetensors.torch import save_file

    from minigpt4.common.checkpoint import fingerprint
    from minigpt4.models.loading import build_model
    from minigpt4.models.lora import merge_lora
    from minigpt4.models.minigpt4 import PROJECTION as PROJECTION_PREFIX

    model = build_model(cfg, torch.device("cpu"), torch.float32, with_encoders=False, keep_llm_on_cpu=True)
    state, metadata = model.trainable_state(), model.metadata()
    source = language_model_folder(cfg.llama_model, "model.llama_model")
    merge_lora(model.llama_model)
    with new_folder_of(folder) as partial, writing(folder):
        shutil.copytree(source, partial / LANGUAGE_MODEL, ignore=shutil.ignore_patterns(*NOT_COPIED))
        model.llama_model.save_pretrained(partial / LANGUAGE_MODEL)  # type: ignore[operator]
        metadata = {key: value for key, value in metadata.items() if not key.startswith("lora.")}
        metadata["base.llama_model"] = fingerprint(partial / LANGUAGE_MODEL)
        trained = {name: tensor for name, tensor in state.items() if name.startswith(PROJECTION_PREFIX)}
        save_file(trained, partial / PROJECTION, metadata=metadata)
    return f"model.llama_model={folder / LANGUAGE_MODEL} model.ckpt={folder / PROJECTION} model.lora.r=0"
