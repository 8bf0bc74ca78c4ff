"""Make webdataset shards of captioned scenes, for all of stage 1 on a laptop: two sources, 115 to 14."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.cli import exit_on_error
from minigpt4.scenes.files import write_shards


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--scenes", type=int, default=2580, help="scenes of both sources together (default: 2580)")
    parser.add_argument("--per-shard", type=int, default=100, help="scenes a shard (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="names the collection (default: 0)")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (default: 64)")
    return parser.parse_args(argv)


@exit_on_error()
def main(argv: list[str] | None = None) -> int:
    """Write the shards and say where they are."""
    args = parse_args(argv)
    for paths in write_shards(args.out, args.scenes, args.per_shard, args.seed, args.size).values():
        print(f"{paths[0].parent}/{{{paths[0].stem}..{paths[-1].stem}}}.tar")
    return 0


if __name__ == "__main__":
    sys.exit(main())
