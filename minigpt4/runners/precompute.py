"""Fill the feature caches of a training configuration, alone or under torchrun, without training.

    minigpt4 precompute --cfg-path train_configs/YOURS.yaml

A training run does the same before its first step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from minigpt4.common.cli import add_config_arguments, checks_early, exit_on_error, read_config, require_files, run_files
from minigpt4.common.errors import ConfigError
from minigpt4.common.logging import announce_imports, set_up_logging
from minigpt4.datasets.builders import build_datasets, require_training_splits


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="minigpt4 precompute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the caches that a configuration names."""
    cfg = read_config(build_parser().parse_args(arguments)).config
    if not any(dataset.feature_cache for dataset in cfg.datasets.values()):
        raise ConfigError("no dataset has a feature_cache; name a folder in datasets.NAME.feature_cache")
    require_files((key, path) for key, path in run_files(cfg.model, cfg.datasets) if key != "model.ckpt")
    if checks_early():
        require_training_splits(cfg.datasets, cfg.run.train_splits, cfg.run.valid_splits)
    announce_imports()
    from minigpt4.common.distributed import start_processes
    from minigpt4.models.loading import build_prompt_encoder, choose_precision
    from minigpt4.runners.cached_features import attach_feature_caches

    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    encoder = build_prompt_encoder(cfg.model)
    groups = [
        build_datasets(cfg.datasets, cfg.model, encoder, splits, seed=cfg.run.seed, train=train)
        for splits, train in ((cfg.run.train_splits, True), (cfg.run.valid_splits, False))
    ]
    precision = processes.run_on_main(lambda: choose_precision(cfg.model, processes.device))
    attach_feature_caches(groups, cfg.datasets, cfg.model, cfg.run, precision.frozen, processes)
    processes.shutdown()


if __name__ == "__main__":
    main()
