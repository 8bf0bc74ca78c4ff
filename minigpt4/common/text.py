"""Text from anywhere as text that can be written and encoded."""

from __future__ import annotations


def whole_characters(text: str) -> str:
    """`text` with halves of surrogate pairs joined, and lone ones replaced: JSON can hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
