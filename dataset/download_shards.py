"""Download the images of a caption table into webdataset shards, by img2dataset.

    python dataset/download_shards.py data/cc_sbu/ccs_synthetic_filtered_large.tsv --out data/cc_sbu/cc_sbu_dataset
    python dataset/download_shards.py data/laion/laion_synthetic_filtered_large.tsv --out data/laion/laion_dataset

An interrupted download resumes with the shards it had not finished. img2dataset needs older releases of pandas
and webdataset than training does, so it lives in an environment of its own: `pipx install img2dataset`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import ConfigError, DataError

INSTALL = (
    "pipx install img2dataset (or uv tool install img2dataset) puts it into an environment of its own; it needs older "
    "releases of pandas and webdataset than training does"
)
INPUT_FORMATS = (".tsv", ".csv")
DISTRIBUTORS = ("multiprocessing", "pyspark", "ray")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="what convert_captions.py wrote: columns caption and url")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--image-size", type=int, default=224, help="longest allowed shorter side of an image (224)")
    parser.add_argument("--processes", type=int, default=16, help="processes (16)")
    parser.add_argument("--threads", type=int, default=128, help="downloads at a time (128)")
    parser.add_argument("--samples-per-shard", type=int, default=10_000, help="rows of the table a shard (10,000)")
    parser.add_argument("--distributor", choices=DISTRIBUTORS, default="multiprocessing", help="runs the processes")
    parser.add_argument("--retries", type=int, default=1, help="further attempts at an image (1)")
    parser.add_argument("--wandb", action="store_true", help="report progress to Weights & Biases")
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the command, and stop")
    return parser.parse_args(argv)


def img2dataset_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments of img2dataset.

    Images keep their proportions and are never enlarged: the model's transform resizes them to its own square.
    """
    values = {
        "url_list": args.table,
        "input_format": args.table.suffix.removeprefix("."),
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": args.out,
        "processes_count": args.processes,
        "thread_count": args.threads,
        "image_size": args.image_size,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "number_sample_per_shard": args.samples_per_shard,
        "retries": args.retries,
        "incremental_mode": "incremental",
        "distributor": args.distributor,
        "enable_wandb": args.wandb,
    }
    return [f"--{name}={value}" for name, value in values.items()]


@exit_on_error()
def main(argv: list[str] | None = None) -> int:
    """Run img2dataset and return its exit status."""
    args = parse_args(argv)
    if not args.table.is_file():
        raise DataError(f"table {args.table} does not exist; dataset/convert_captions.py makes it of BLIP's JSON")
    if args.table.suffix not in INPUT_FORMATS:
        raise DataError(f"table {args.table}: a name that ends in {' or '.join(INPUT_FORMATS)} is expected")
    arguments = img2dataset_arguments(args)
    if args.only_print:
        print(shlex.join(["img2dataset", *arguments]))
        return 0
    command = shutil.which("img2dataset")
    if command is None:
        raise ConfigError(f"there is no command img2dataset; {INSTALL}")
    status = subprocess.run([command, *arguments], check=False).returncode
    if status == 0:
        print(f"train on them with datasets.NAME.shards='{args.out}/*.tar'")
    return status


if __name__ == "__main__":
    sys.exit(main())
