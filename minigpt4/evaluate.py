"""Answers and scores of one or several checkpoints, in one process or under torchrun.

The dataset, the split and what is asked about its images stand under `evaluation` in the YAML file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minigpt4.common.cli import (
    add_config_arguments,
    checks_early,
    command,
    console,
    exit_on_error,
    read_config,
    require_files,
    run_files,
)
from minigpt4.common.files import require_writable
from minigpt4.common.logging import announce_imports
from minigpt4.common.schema import EvaluationTask, Scorer
from minigpt4.datasets.builders import evaluated_datasets, quick_missing_splits, require_evaluated_splits
from minigpt4.evaluation.caption import parse_metrics
from minigpt4.evaluation.table import overview

OWN = ("task", "dataset", "split", "scorer", "limit", "fraction", "seed")
"""Arguments that are settings of the same name."""


def parse_arguments(description: str | None, task: EvaluationTask | None) -> argparse.Namespace:
    """The command line.

    Args:
        description: what the command does.
        task: what is asked; None: `--task` says it.
    """
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser)
    parser.add_argument("--ckpt", nargs="+", default=[], metavar="FILE", help="checkpoints to compare, in order")
    if task is None:
        names = ", ".join(EvaluationTask.__members__)
        parser.add_argument("--task", help=f"what is asked: {names} (default: evaluation.task, or each dataset's)")
    parser.add_argument("--dataset", help="datasets of the YAML file, separated by commas (default: the only one)")
    parser.add_argument("--split", help="train, val, test, ..., separated by commas (default: evaluation.split)")
    parser.add_argument("--limit", type=int, help="evaluate only the first LIMIT images or questions of each split")
    parser.add_argument("--fraction", type=float, help="evaluate only a random share of each split, fixed by --seed")
    parser.add_argument("--seed", type=int, help="seed of --fraction, of sampling and of the shuffled images")
    if task in (None, EvaluationTask.vqa):
        parser.add_argument("--scorer", help=f"task vqa: {', '.join(Scorer.__members__)} (default: auto)")
    if task is None:
        parser.add_argument("--metrics", help="task caption: comma-separated, any of bleu,rouge,cider,meteor,spice")
    out = ("--out", "--save_path")  # the latter is what older scripts call it
    parser.add_argument(*out, dest="out", help="folder of the results (default: evaluation.output_dir)")
    return parser.parse_args()


def evaluation_options(args: argparse.Namespace) -> list[str]:
    """The command's own arguments as configuration values, which win over --options."""
    values = {key: getattr(args, key, None) for key in OWN}
    values["metrics"] = f"[{args.metrics}]" if getattr(args, "metrics", None) else None
    values["output_dir"] = args.out
    return [f"evaluation.{key}={value}" for key, value in values.items() if value is not None]


@exit_on_error()
def main(task: EvaluationTask | None = None, description: str | None = __doc__) -> None:
    """Evaluate what the command line names.

    Args:
        task: what is asked; None: what the command line or the configuration says.
        description: what the command does, for its help.
    """
    args = parse_arguments(description, task)
    if task is not None:
        args.task = task.value
    loaded = read_config(args, evaluation_options(args))
    cfg = loaded.config
    names = evaluated_datasets(cfg.evaluation.datasets, list(cfg.datasets))
    evaluated = {name: cfg.datasets[name] for name in names}
    if EvaluationTask.caption in {cfg.evaluation.task or dataset.task for dataset in evaluated.values()}:
        parse_metrics(cfg.evaluation.metrics)
    require_files(run_files(cfg.model, evaluated, args.ckpt))
    if checks_early():
        require_writable(Path(cfg.evaluation.output_dir or cfg.paths.output_root), "evaluation.output_dir (--out)")
        splits = cfg.evaluation.splits
        require_evaluated_splits({name: quick_missing_splits(name, evaluated[name], splits) for name in names}, splits)
    announce_imports()
    from minigpt4.runners.evaluate import evaluate

    results = evaluate(cfg, args.ckpt)
    if not results:
        return
    for written in results:
        for table in (written.table, *written.kinds):
            console().print(table)
        sys.stdout.write(
            f"Scores: {written.metrics}\nPlot:   {written.trends}\nReport: {written.report} (open it in a browser)\n"
        )
    if len(results) > 1:
        console().print(overview({written.table.title: written.table.rows for written in results}))
    chosen = ["--cfg-path", args.cfg_path, *(["--ckpt", args.ckpt[-1]] if args.ckpt else [])]
    options = ["--options", *args.options] if args.options else []
    image = str(results[0].example or "IMAGE")
    sys.stdout.write(f"Chat:   {command('chat', *chosen, '--image', image, *options)}\n")


if __name__ == "__main__":
    main()
