"""The recipe that trained the tiny model shipped in `minigpt4/assets/tiny`."""
