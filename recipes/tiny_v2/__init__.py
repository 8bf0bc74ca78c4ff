"""The recipe that trained the frozen parts of the tiny MiniGPT-v2, shipped in `minigpt4/assets/tiny_v2`."""
