"""Several models side by side, without the page."""

from __future__ import annotations

import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.errors import DataError, MiniGPT4Error
from minigpt4.common.files import asset
from minigpt4.web.side_by_side import SideBySideChat

QUESTION = "How many objects are there?"


@pytest.fixture
def chat(tiny: LoadedModel) -> SideBySideChat:
    return SideBySideChat([tiny, tiny.with_projection(asset("tiny/stage1.pth"))])


def finish(chat: SideBySideChat, question: str, files: list[str]) -> None:
    for _ in chat.ask(question, files, {"max_new_tokens": 6}):
        pass


def test_each_model_answers_as_it_does_alone(chat: SideBySideChat, tiny: LoadedModel, files: list[str]) -> None:
    finish(chat, "", files[:1])
    finish(chat, QUESTION, [])
    assert [one.turns[0].answer for one in chat.chats] == [
        one.loaded.describe(files[0], tiny.prompt, max_new_tokens=6) for one in chat.chats
    ]
    assert [turn.question for turn in chat.chats[1].turns] == [tiny.prompt, QUESTION]
    assert [len(files) for files in chat.files] == [1, 0]


def test_texts_are_no_markup(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, "<b>What?</b> & why", files[:1])
    user, bot = chat.messages(0)
    assert user["content"] == [
        {"path": files[0], "alt_text": "uploaded image"},
        {"type": "text", "text": "&lt;b&gt;What?&lt;/b&gt; &amp; why"},
    ]
    assert bot["role"] == "assistant"


def test_undo_and_restart(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, QUESTION, files[:2])
    assert chat.undo() == (QUESTION, files[:2])
    assert chat.messages(0) == chat.messages(1) == []
    finish(chat, QUESTION, files[:1])
    chat.restart()
    assert chat.files == [] and not chat.chats[1].turns
    with pytest.raises(DataError, match="nothing was asked yet"):
        chat.undo()


def test_a_refused_question_leaves_every_conversation_unchanged(
    chat: SideBySideChat, files: list[str], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="there is no image yet"):
        chat.ask(QUESTION, [], {})
    finish(chat, QUESTION, files[:1])
    before = [chat.messages(0), chat.messages(1)]

    def refuse(*_: object, **__: object) -> None:
        raise DataError("the second model refuses")

    for attempt in ((QUESTION, [broken], {}), (QUESTION, [], {"num_beams": 0}), ("word " * 600, [], {})):
        with pytest.raises(MiniGPT4Error):
            chat.ask(*attempt)
    monkeypatch.setattr(chat.chats[1], "stream", refuse)
    with pytest.raises(DataError, match="the second model refuses"):
        chat.ask(QUESTION, [], {})
    assert [chat.messages(0), chat.messages(1)] == before


@pytest.mark.parametrize(
    ("dropped", "remark"),
    [
        (0, ""),
        (1, "The oldest turn does not fit into the model's context any more: left out of the prompt, images are kept."),
        (
            2,
            "The 2 oldest turns do not fit into the model's context any more: left out of the prompt, images are kept.",
        ),
    ],
)
def test_turns_left_out_are_reported(
    chat: SideBySideChat, monkeypatch: pytest.MonkeyPatch, dropped: int, remark: str
) -> None:
    monkeypatch.setattr(type(chat.chats[0]), "dropped", dropped)
    assert chat.remark() == remark
