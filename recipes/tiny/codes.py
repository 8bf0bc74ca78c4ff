"""The scene code: what an image shows as sixteen words, the language that the two halves of the model share.

Three slots, the largest object first, of size, colour, shape, row and column; then the background. The Q-Former
learns to say one word with each of its sixteen queries; the language model learns to read the same words from text.
Neither has seen the other, and the words' embeddings differ: finding the map between them is what alignment means.
"""

from __future__ import annotations

from minigpt4.scenes.truth import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene

MAX_OBJECTS = 3
ATTRIBUTES = ("size", "colour", "shape", "row", "column")
CODE_LENGTH = MAX_OBJECTS * len(ATTRIBUTES) + 1
# "plain": any other even colour; only empty images have it.
ALL_BACKGROUNDS = (*BACKGROUNDS, "plain")
WORDS: tuple[str, ...] = ("none", *SIZES, *COLOURS, *SHAPES, *ROWS, *COLUMNS, *ALL_BACKGROUNDS)
WORD_IDS = {word: index for index, word in enumerate(WORDS)}
PIECES: tuple[str, ...] = tuple(f"<{word}>" for word in WORDS)


def encode_scene(scene: Scene) -> list[int]:
    """The scene's code: `CODE_LENGTH` indices into `WORDS`; an unused slot holds five times "none"."""
    words: list[str] = []
    for slot in range(MAX_OBJECTS):
        if slot < len(scene.objects):
            o = scene.objects[slot]
            words += [o.size, o.colour, o.shape, o.row, o.column]
        else:
            words += ["none"] * len(ATTRIBUTES)
    return [WORD_IDS[word] for word in [*words, scene.background]]


def position_name(index: int) -> str:
    """What stands at a place of the code: "shape 0", ..., "background"."""
    slot, attribute = divmod(index, len(ATTRIBUTES))
    return "background" if slot == MAX_OBJECTS else f"{ATTRIBUTES[attribute]} {slot}"
