"""Make captioned scenes of coloured shapes in Flickr30k's layout: images, annotations and ground truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.scenes.files import ANNOTATIONS_NAME, QUESTIONS_FOLDER, SCENES_NAME, write_scenes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--train", type=int, default=1000, help="number of training scenes (default: 1000)")
    parser.add_argument("--val", type=int, default=100, help="number of validation scenes (default: 100)")
    parser.add_argument("--test", type=int, default=200, help="number of test scenes (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="names the collection (default: 0)")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first scene, to tell it from other collections (default: 0)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument(
        "--questions", action="store_true", help=f"also write questions of MiniGPT-v2's tasks into {QUESTIONS_FOLDER}/"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the scenes and say where they are."""
    args = parse_args(argv)
    counts = {"train": args.train, "val": args.val, "test": args.test}
    try:
        total = write_scenes(args.out, counts, args.seed, args.size, args.questions, args.first)
    except MiniGPT4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{total} scenes in {args.out}: images/, {ANNOTATIONS_NAME}, {SCENES_NAME}"
        + (f", {QUESTIONS_FOLDER}/" if args.questions else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
