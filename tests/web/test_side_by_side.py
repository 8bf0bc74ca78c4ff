"""Several models side by side, without the page."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.errors import DataError, MiniGPT4Error
from minigpt4.common.files import asset
from minigpt4.web.export import as_json, as_markdown
from minigpt4.web.handlers import Handlers
from minigpt4.web.side_by_side import SideBySideChat, figures

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
    assert [len(asked.files) for asked in chat.asked] == [1, 0]


def test_texts_reach_the_page_unchanged(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, "<b>What?</b> & why", files[:1])
    (turn,) = chat.view(0)
    assert turn["question"] == "<b>What?</b> & why"
    assert turn["images"] == [{"path": files[0], "meta": {"_type": "gradio.FileData"}}]
    assert turn["answer"] == chat.chats[0].turns[0].answer
    assert turn["figures"].startswith("6 tokens in ") and not turn["remark"]


def test_while_an_answer_grows_only_its_turn_is_sent(tiny: LoadedModel, files: list[str]) -> None:
    handlers = Handlers([tiny], ["one"])
    controls = ("", 4, 1, False, 1, 1, 1)
    chat, *_ = list(handlers.ask(None, {"text": QUESTION, "files": files[:1]}, *controls))[-1]
    told = [update[1] for update in handlers.ask(chat, {"text": "What is it?", "files": []}, *controls)]
    assert [(one["kept"], len(one["turns"]), one["busy"]) for one in told] == [(1, 1, True)] * 5 + [(0, 2, False)]
    assert [turn["question"] for turn in told[-1]["turns"]] == [QUESTION, "What is it?"]
    assert told[-2]["turns"] == chat.view(0, kept=1) == chat.view(0)[1:]
    again = [update[1]["kept"] for update in handlers.regenerate(chat, *controls)]
    assert again == [1] * 5 + [0]


def test_a_system_message_is_sent_from_the_next_question_on(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, QUESTION, files[:1])
    before = chat.chats[0].prompt
    for _ in chat.ask(QUESTION, [], {"max_new_tokens": 2}, "Be brief.\n"):
        pass
    assert all(one.prompt.startswith("Be brief.\n#") and before in one.prompt for one in chat.chats)
    with pytest.raises(DataError, match="system message: 1 image placeholder"):
        chat.ask(QUESTION, [], {}, "<ImageHere>")
    assert len(chat.chats[0].turns) == 2
    for _ in chat.regenerate({"max_new_tokens": 2}, ""):
        pass
    assert not chat.chats[1].prompt.startswith("Be brief.")


def test_it_is_saved_with_everything_that_made_the_answers(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, "<b>*What*</b>\n# is it?\n\n    ===", files[:1])
    first, second = json.loads(as_json(chat, ["one", "two"]))["conversations"]
    assert (first["model"], second["model"]) == ("one", "two")
    assert first["summary"] == chat.chats[0].loaded.summary and first["prompt"] == chat.chats[0].prompt
    (turn,) = first["turns"]
    assert turn["question"] == "<b>*What*</b>\n# is it?\n\n    ===" and turn["answer"] == chat.chats[0].turns[0].answer
    assert turn["images"] == ["0.png"] and turn["tokens"] == 6 and turn["settings"] == {"max_new_tokens": 6}
    text = as_markdown(chat, ["one", "two"])
    assert "## one" in text and "## two" in text and "(0\\.png)" in text
    assert "\\<b\\>\\*What\\*\\</b\\>  \n\\# is it?  \n  \n\\=\\=\\=" in text, "the question is markup"


def test_no_division_by_zero_seconds() -> None:
    assert figures(0, 0.0) == ""
    assert figures(1, 0.0).startswith("1 token in 0.0 s")


def test_an_answer_that_fails_leaves_a_page_that_can_be_used(
    tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Iterator[object]:
        yield from ()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LoadedModel, "answer_ids", fails)
    shown = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for update in Handlers([tiny], ["one"]).ask(
            None, {"text": QUESTION, "files": files[:1]}, "", 9, 1, False, 1, 1, 1
        ):
            shown.append(update)
    _, conversation, notice, *_ = shown[-1]
    assert [turn["question"] for turn in conversation["turns"]] == [QUESTION] and not conversation["busy"]
    assert "the answer ended early" in notice["value"]


def test_an_answer_that_is_refused_is_shown_with_the_reason(
    tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> Iterator[object]:
        yield from ()
        raise DataError("64 requests wait already")

    monkeypatch.setattr(LoadedModel, "answer_ids", refuses)
    *_, (_, conversation, notice, *_) = Handlers([tiny], ["one"]).ask(
        None, {"text": QUESTION, "files": files[:1]}, "", 9, 1, False, 1, 1, 1
    )
    assert [turn["question"] for turn in conversation["turns"]] == [QUESTION] and not conversation["busy"]
    assert "64 requests wait already" in notice["value"]


def test_undo_and_restart(chat: SideBySideChat, files: list[str]) -> None:
    finish(chat, QUESTION, files[:2])
    assert chat.undo() == (QUESTION, files[:2])
    assert chat.view(0) == chat.view(1) == []
    finish(chat, QUESTION, files[:1])
    chat.restart()
    assert chat.asked == [] and not chat.chats[1].turns
    with pytest.raises(DataError, match="nothing was asked yet"):
        chat.undo()


def test_a_refused_question_leaves_every_conversation_unchanged(
    chat: SideBySideChat, files: list[str], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="there is no image yet"):
        chat.ask(QUESTION, [], {})
    finish(chat, QUESTION, files[:1])
    before = [chat.view(0), chat.view(1)]

    def refuse(*_: object, **__: object) -> None:
        raise DataError("the second model refuses")

    for attempt in ((QUESTION, [broken], {}), (QUESTION, [], {"num_beams": 0}), ("word " * 600, [], {})):
        with pytest.raises(MiniGPT4Error):
            chat.ask(*attempt)
    monkeypatch.setattr(chat.chats[1], "stream", refuse)
    with pytest.raises(DataError, match="the second model refuses"):
        chat.ask(QUESTION, [], {})
    assert [chat.view(0), chat.view(1)] == before


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
