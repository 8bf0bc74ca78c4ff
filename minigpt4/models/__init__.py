"""The alignment model and its parts.

Letters in shapes: B batch, N images, P patches with the class token, Q queries, T tokens, D the language model's width.
"""

from minigpt4.models.minigpt4 import MiniGPT4  # registers it

__all__ = ["MiniGPT4"]
