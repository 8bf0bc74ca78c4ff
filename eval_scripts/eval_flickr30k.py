"""Captions and scores of one or several checkpoints, in one process or under torchrun; the same as `minigpt4 eval`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.evaluate import main

if __name__ == "__main__":
    main()
