"""The alignment model and its parts.

Letters in shapes: B batch, N images, P patches with the class token, Q queries, T tokens, D the language model's width.
"""

from minigpt4.models.loading import build_minigpt4
from minigpt4.models.minigpt4 import MiniGPT4

__all__ = ["MiniGPT4", "build_minigpt4"]
