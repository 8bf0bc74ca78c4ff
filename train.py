"""Train the projection between a frozen vision encoder and a frozen language model, alone or under torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that a clone works without being installed

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import add_config_arguments, load_config


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, show parameters, a sample and the plan, and stop"
    )
    return parser.parse_args()


@exit_on_error()
def main() -> None:
    args = parse_arguments()
    loaded = load_config(args.cfg_path, args.options)
    if args.print_config:
        from minigpt4.common.cli import config_table, console

        console().print(config_table(loaded))
        return
    from minigpt4.runners.train import train  # imports torch and transformers, which --help need not wait for

    train(loaded, dry_run=args.dry_run)


if __name__ == "__main__":
    main()
