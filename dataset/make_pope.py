"""POPE's questions ("Is there a dog in the image?") from the boxes of images, as rows of the reader jsonl.

Objects that an image does not show are random, popular or adversarial ones. eval_scripts/eval_vqa.py asks them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import write_text, writing
from minigpt4.evaluation.hallucination import pope_questions
from minigpt4.runners.objects import read_objects


@exit_on_error()
def main() -> None:
    """Write the questions that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", required=True, help="COCO's instances, JSON lines with boxes, or scenes.json")
    parser.add_argument("--out", required=True, help="JSONL file of the questions")
    parser.add_argument("--each", type=int, default=3, help="objects asked about, of each kind (default: %(default)s)")
    parser.add_argument("--images", type=int, help="ask about a random choice of IMAGES images only (default: all)")
    parser.add_argument("--split", default="test", help="split in the rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="names the choice of images and objects")
    args = parser.parse_args()
    if args.each < 1 or (args.images is not None and args.images < 1):
        raise ConfigError("--each and --images should be at least 1")
    if Path(args.out).resolve() == Path(args.objects).resolve():
        raise ConfigError(f"--out: {args.out} is the file of the objects, which would be lost; name another file")
    objects = read_objects(args.objects)
    rows = pope_questions(objects.shown, args.each, args.seed, args.images)
    if not rows:
        raise DataError(f"{args.objects}: no image shows an object that another one lacks, so there is nothing to ask")
    with writing(args.out):
        lines = (json.dumps(row | {"split": args.split}, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(args.out), "".join(lines))
    sys.stdout.write(f"{len(rows):,} questions about {len({row['image'] for row in rows}):,} images: {args.out}\n")


if __name__ == "__main__":
    main()
