"""Captions and scores of one or several checkpoints, in one process or under torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.common.cli import (
    add_config_arguments,
    command,
    console,
    exit_on_error,
    read_config,
    require_files,
    run_files,
)
from minigpt4.common.logging import announce_imports
from minigpt4.evaluation.caption import parse_metrics


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--ckpt", nargs="+", default=[], metavar="FILE", help="checkpoints to compare, in order")
    parser.add_argument("--split", help="train, val or test (default: evaluation.split)")
    parser.add_argument("--limit", type=int, help="evaluate only the first LIMIT images of the split")
    parser.add_argument("--fraction", type=float, help="evaluate only a random share of the split, fixed by --seed")
    parser.add_argument("--seed", type=int, help="seed of --fraction, of sampling and of the shuffled images")
    parser.add_argument("--metrics", help="comma-separated, any of bleu,rouge,cider,meteor,spice")
    out = ("--out", "--save_path")  # the latter is what older scripts call it
    parser.add_argument(*out, dest="out", help="folder of the results (default: evaluation.output_dir)")
    return parser.parse_args()


def evaluation_options(args: argparse.Namespace) -> list[str]:
    """The script's own arguments as configuration values, which win over --options."""
    values = {key: getattr(args, key) for key in ("split", "limit", "fraction", "seed")}
    values["metrics"] = f"[{args.metrics}]" if args.metrics else None
    values["output_dir"] = args.out
    return [f"evaluation.{key}={value}" for key, value in values.items() if value is not None]


@exit_on_error()
def main() -> None:
    args = parse_arguments()
    loaded = read_config(args, evaluation_options(args))
    cfg = loaded.config
    name = cfg.evaluation.dataset
    evaluated = {name: cfg.datasets[name]} if name in cfg.datasets else cfg.datasets
    parse_metrics(cfg.evaluation.metrics)
    require_files(run_files(cfg.model, evaluated, args.ckpt))
    announce_imports()
    from minigpt4.runners.evaluate import evaluate

    results = evaluate(loaded.config, args.ckpt)
    if results is None:
        return
    console().print(results.table)
    print(f"Scores: {results.metrics}\nPlot:   {results.trends}\nReport: {results.report} (open it in a browser)")
    chosen = ["--cfg-path", args.cfg_path, *(["--ckpt", args.ckpt[-1]] if args.ckpt else [])]
    options = ["--options", *args.options] if args.options else []
    print(f"Chat:   {command('chat', *chosen, '--image', str(results.example or 'IMAGE'), *options)}")


if __name__ == "__main__":
    main()
