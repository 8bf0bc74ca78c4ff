"""A conversation as a file that its visitor keeps: JSON or Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from minigpt4.web.side_by_side import SideBySideChat


def as_json(chat: SideBySideChat, labels: Sequence[str]) -> str:
    """Everything that was said, by which model and with which settings, as an object in JSON.

    Args:
        chat: the conversation.
        labels: names of the models.
    """
    return json.dumps(_content(chat, labels), indent=1, ensure_ascii=False) + "\n"


def as_markdown(chat: SideBySideChat, labels: Sequence[str]) -> str:
    """As `as_json`, for people; nothing in questions and answers is taken for markup."""
    content = _content(chat, labels)
    lines = ["# Conversation", "", content["saved"]]
    for one in content["conversations"]:
        lines += ["", f"## {_plain(one['model'])}", "", *[_plain(one[key]) for key in ("summary", "note") if one[key]]]
        lines += ["", f"System message: {_plain(one['system'])}"] if one["system"] else []
        for turn in one["turns"]:
            images = f" ({_plain(', '.join(turn['images']))})" if turn["images"] else ""
            figures = f"{turn['tokens']} tokens in {turn['seconds']:.1f} s"
            lines += ["", f"**Question**{images}: {_plain(turn['question'])}", ""]
            lines += [f"**Answer** ({figures}): {_plain(turn['answer'])}"]
            lines += ["", f"*{_plain(turn['remark'])}*"] if turn["remark"] else []
    return "\n".join(lines) + "\n"


def _content(chat: SideBySideChat, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "saved": datetime.now().astimezone().isoformat(timespec="seconds"),
        "conversations": [
            {
                "model": label,
                "summary": one.loaded.summary,
                "note": one.loaded.note,
                "system": one.system,
                "prompt": one.prompt,
                "turns": [
                    {
                        "question": turn.question,
                        "images": [Path(file).name for file in asked.files],
                        "answer": turn.answer,
                        "tokens": turn.tokens,
                        "seconds": round(turn.seconds, 3),
                        "remark": turn.remark,
                        "settings": asked.settings,
                    }
                    for turn, asked in zip(one.turns, chat.asked, strict=False)
                ],
            }
            for label, one in zip(labels, chat.chats, strict=True)
        ],
    }


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also over several lines; without their indentation, which would be code."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~&$=])", r"\\\1", text)
    return re.sub(r"\n[ \t]*", "  \n", escaped)
