"""Answers to questions about images, by one or several checkpoints: VQA's accuracy, exact match, choices, or POPE.

python eval_scripts/eval_vqa.py --cfg-path eval_configs/minigptv2_vqa.yaml --dataset ok_vqa,gqa
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.common.schema import EvaluationTask
from minigpt4.evaluate import main as evaluate


def main() -> None:
    """Evaluate what the command line names."""
    evaluate(EvaluationTask.vqa, __doc__)


if __name__ == "__main__":
    main()
