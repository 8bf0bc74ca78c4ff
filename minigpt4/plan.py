"""What a run needs, before a weight is loaded: memory by part, the cards that it fits on, steps, time and disk.

    minigpt4 plan --cfg-path train_configs/YOURS.yaml

Needs the annotations and the language model's folder, of which only `config.json` and the tokenizer are read; of a
language model named as on the hub, no more than these are downloaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config, require_files
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import language_model_folder, missing_file
from minigpt4.common.logging import announce_imports
from minigpt4.datasets.builders import require_training_splits

READ = "--include config.json --include 'tokenizer*'"
"""Arguments of `hf download` for the files that a plan reads."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="minigpt4 plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of the run (default: 1)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of a GPU's peak that is reached (default: 0.4)")
    return parser


def _require_tokenizer(llm: str | None) -> None:
    """Refuse a known language model that is missing, with the command that brings no more of it than a plan reads."""
    from minigpt4.common.sources import REHEARSAL, source_of

    source = source_of(llm or "")
    if llm and source and not os.path.exists(llm):
        small = source.get.format(path=llm).replace("--local-dir", f"{READ} --local-dir")
        raise ConfigError(
            f"{missing_file(llm, 'model.llama_model')}. To get what a plan reads of it, a few MB: {small}\n{REHEARSAL}"
        )


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print what a training run needs."""
    args = build_parser().parse_args(arguments)
    cfg = read_config(args).config
    if args.processes < 1:
        raise ConfigError(f"--processes: {args.processes} should be at least 1")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu: {args.mfu} should be above 0 and at most 1")
    _require_tokenizer(cfg.model.llama_model)
    require_files(file for name, dataset in cfg.datasets.items() for file in dataset.files(name))
    require_training_splits(cfg.datasets, cfg.run.train_splits, cfg.run.valid_splits)
    described = language_model_folder(cfg.model.llama_model, "model.llama_model", weights=False)
    announce_imports()
    from minigpt4.runners.plan import print_plan

    cfg = replace(cfg, model=replace(cfg.model, llama_model=str(described)))
    print_plan(cfg, args.processes, args.mfu)


if __name__ == "__main__":
    main()
