"""Write the test images of prepared Flickr30k-style annotations as a table of VLMEvalKit's `ImageCaptionDataset`."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

COLUMNS = ("index", "image_path", "question", "answer")


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path, required=True, help="JSON file of prepare_flickr30k.py")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--prompt", default="Describe this image in detail.", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="LMUData/NAME.tsv; NAME is the dataset")
    args = parser.parse_args(arguments)
    records = [record for record in json.loads(args.annotations.read_text("utf-8")) if record["split"] == "test"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(COLUMNS)
        for record in records:
            image = (args.images / record["filename"]).resolve()
            # The references are a Python list there, which VLMEvalKit evaluates.
            writer.writerow([record["image_id"], image, args.prompt, repr(record["captions"])])


if __name__ == "__main__":
    main()
