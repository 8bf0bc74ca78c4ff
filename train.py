"""Train the projection between a frozen vision encoder and a frozen language model, alone or under torchrun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that a clone works without being installed

from minigpt4.common.cli import (
    add_config_arguments,
    checks_early,
    exit_on_error,
    read_config,
    require_files,
    run_files,
)
from minigpt4.common.logging import announce_imports
from minigpt4.datasets.builders import require_training_splits
from minigpt4.runners.run_folder import check_run_folder


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, show parameters, a sample and the plan, and stop"
    )
    return parser.parse_args(arguments)


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    loaded = read_config(args)
    cfg = loaded.config
    resume = cfg.run.resume_ckpt_path
    more = [("run.resume_ckpt_path", resume)] if resume and resume != "auto" else []
    require_files([*run_files(cfg.model, cfg.datasets), *more])
    if checks_early():
        if not args.dry_run:
            check_run_folder(cfg.run)
        require_training_splits(cfg.datasets, cfg.run.train_splits, cfg.run.valid_splits)
    announce_imports()
    from minigpt4.runners.train import train  # imports torch and transformers, which --help need not wait for

    train(loaded, dry_run=args.dry_run)


if __name__ == "__main__":
    main()
