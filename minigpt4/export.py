"""Merge a checkpoint's adapters into the language model: `python -m minigpt4.export --ckpt FILE --out FOLDER`.

The merged model needs no adapters, so it generates faster, and any program that reads Hugging Face's folders takes it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import writing
from minigpt4.common.schema import LowResource, ModelConfig

LANGUAGE_MODEL = "language_model"
"""Folder of the merged language model in the exported folder."""
PROJECTION = "projection.safetensors"
"""The checkpoint's projection, for the merged language model."""
OWN_FILES = ("*.safetensors", "*.bin", "*.index.json", "config.json", "generation_config.json")
"""Files of a language model's folder that describe its weights; the others, such as the tokenizer's, are copied."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the adapters (default: model.ckpt)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new folder for the merged weights")
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the merged language model and the projection, and print the options that load them."""
    args = build_parser().parse_args(arguments)
    options = [f"model.ckpt={args.ckpt}"] if args.ckpt else []
    export(read_config(args, options).config.model, args.out)
    load = f"model.llama_model={args.out / LANGUAGE_MODEL} model.ckpt={args.out / PROJECTION} model.lora.r=0"
    console().print(f"wrote {args.out}; to use it: --options {load}", markup=False, soft_wrap=True)


def export(cfg: ModelConfig, folder: Path) -> None:
    """Write the language model with the adapters of `model.ckpt` merged into it, and the projection beside it.

    The weights keep the number format of their files. The folder appears once it is complete.

    Args:
        cfg: model with adapters and a checkpoint.
        folder: new folder.

    Raises:
        ConfigError: There are no adapters or no checkpoint, the language model is quantised, or the folder exists.
        CheckpointError: The checkpoint does not fit.
        DataError: The folder cannot be written.
    """
    if not cfg.lora.r:
        raise ConfigError("model.lora.r: the model has no adapters to merge; set it to the checkpoint's rank")
    if cfg.ckpt is None:
        raise ConfigError("no checkpoint: name the one with the adapters by --ckpt FILE or model.ckpt")
    if cfg.low_resource is not LowResource.off:
        raise ConfigError(
            f"model.low_resource: adapters cannot be merged into {cfg.low_resource.value} weights; set it to off"
        )
    if folder.exists():
        raise ConfigError(f"--out: {folder} exists; name a new folder")

    import torch
    from safetensors.torch import save_file

    from minigpt4.common.checkpoint import fingerprint
    from minigpt4.models.loading import build_model
    from minigpt4.models.lora import merge_lora
    from minigpt4.models.minigpt4 import PROJECTION as PROJECTION_NAMES

    model = build_model(cfg, torch.device("cpu"), torch.float32, with_encoders=False, keep_llm_on_cpu=True)
    state, metadata = model.trainable_state(), model.metadata()
    merge_lora(model.llama_model)
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(str(cfg.llama_model), partial / LANGUAGE_MODEL, ignore=shutil.ignore_patterns(*OWN_FILES))
        model.llama_model.save_pretrained(partial / LANGUAGE_MODEL)  # type: ignore[operator]
        metadata = {key: value for key, value in metadata.items() if not key.startswith("lora.")}
        metadata["base.llama_model"] = fingerprint(partial / LANGUAGE_MODEL)
        save_file({name: state[name] for name in PROJECTION_NAMES}, partial / PROJECTION, metadata=metadata)
        partial.rename(folder)


if __name__ == "__main__":
    main()
