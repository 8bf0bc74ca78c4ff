"""The scene generator lives beside the package, so the repository's root must be importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
