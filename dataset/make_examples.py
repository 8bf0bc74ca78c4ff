"""The chat page's example images: scenes of the test pool, each with a prompt."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split

PROMPTS = (
    "Describe this image in detail.",
    "What is in this picture?",
    "How many objects are there?",
    "What colour is the largest object?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="minigpt4/assets/examples", metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {}
    for number, placed in enumerate(sample_split("test", len(PROMPTS), seed=args.seed), 1):
        name = f"scene_{number}.png"
        draw_scene(placed, 224).quantize(64).save(folder / name, optimize=True)
        prompts[name] = PROMPTS[number - 1]
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")
    print(f"{len(prompts)} images in {folder}")


if __name__ == "__main__":
    main()
