"""Align a frozen vision encoder with a frozen language model by training one small projection."""

import os

__version__ = "0.1.0"

# Before torch is loaded, which reads it once: idle threads sleep instead of spinning. Where another program wants the
# same cores, a spinning thread keeps the one it waits for from running; a training step of the tiny model on two busy
# cores took 3.6 s instead of 0.2 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
