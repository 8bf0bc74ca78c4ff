"""The boxes of what expressions refer to, by one or several checkpoints: accuracy at an IoU of 0.5.

    python eval_scripts/eval_ref.py --cfg-path eval_configs/minigptv2_ref.yaml \
        --dataset refcoco,refcocop,refcocog --split val,testA,testB,test
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a clone works without being installed

from minigpt4.common.schema import EvaluationTask
from minigpt4.evaluate import main as evaluate


def main() -> None:
    """Evaluate what the command line names."""
    evaluate(EvaluationTask.refer, __doc__)


if __name__ == "__main__":
    main()
