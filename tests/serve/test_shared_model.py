"""Conversations of several users with one engine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt4.api import LoadedModel
from minigpt4.serve.engine import Engine
from minigpt4.serve.lane import STEPS_BETWEEN_JOINS
from minigpt4.serve.shared_model import SharedModel
from tests.drawn import drawn_scenes
from tests.serve.conftest import wait_until
from tests.test_api import counted_passes

DESCRIBE = "Describe this image in detail."


@pytest.fixture
def shared(tiny: LoadedModel, engine: Engine) -> SharedModel:
    return SharedModel(tiny, engine)


def test_four_users_at_once_are_answered_in_one_batch(shared: SharedModel, tiny: LoadedModel) -> None:
    scenes = drawn_scenes()[:4]
    chats = [shared.chat() for _ in scenes]
    slow = tiny.model.llama_model.register_forward_hook(lambda *_: time.sleep(0.1))
    try:
        with counted_passes(tiny) as passes, ThreadPoolExecutor(len(scenes)) as threads:
            answers = threads.map(lambda chat, scene: chat.ask(DESCRIBE, [scene.image]), chats, scenes)
    finally:
        slow.remove()
    assert list(answers) == tiny.describe([scene.image for scene in scenes], DESCRIBE)
    longest = max(chat.turns[0].tokens for chat in chats)
    assert len(passes) <= longest + 2 * STEPS_BETWEEN_JOINS, "they were answered in turns"


def test_closing_an_answer_frees_its_row(shared: SharedModel, tiny: LoadedModel, engine: Engine) -> None:
    chat = shared.chat()
    stream = chat.stream(DESCRIBE, [drawn_scenes()[0].image], max_new_tokens=300, min_new_tokens=300)
    shown = next(stream)
    assert engine.running == 1
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: engine.running == 0)
    assert chat.turns[0].answer == shown and chat.turns[0].tokens < 300
    with counted_passes(tiny) as passes:
        assert chat.ask("How many objects are there?")
        assert len(passes) == chat.turns[1].tokens


def test_an_answer_that_nobody_reads_is_never_begun(shared: SharedModel, tiny: LoadedModel, engine: Engine) -> None:
    with counted_passes(tiny) as passes:
        shared.chat().stream(DESCRIBE, [drawn_scenes()[0].image]).close()  # type: ignore[attr-defined]
        assert shared.describe(drawn_scenes()[1].image, max_new_tokens=1)
    assert len(passes) == 1


def test_an_image_is_encoded_once_in_a_conversation(shared: SharedModel, engine: Engine, tiny: LoadedModel) -> None:
    chat, plain = shared.chat(), tiny.chat()
    image = drawn_scenes()[2].image
    questions = (DESCRIBE, "How many objects are there?")
    assert [chat.ask(questions[0], [image]), chat.ask(questions[1])] == [
        plain.ask(questions[0], [image]),
        plain.ask(questions[1]),
    ]
    seen = engine.features.hits + engine.features.misses
    assert list(chat.regenerate())[-1] == plain.turns[1].answer
    assert engine.features.hits + engine.features.misses == seen


def test_old_turns_leave_a_conversation_that_outgrows_a_row(
    shared: SharedModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "context", 100)
    chat = shared.chat()
    chat.ask(DESCRIBE, [drawn_scenes()[0].image], max_new_tokens=20)
    for _ in range(5):
        chat.ask("What is in this image?", max_new_tokens=20)
    assert chat.dropped and chat.prompt.count("<ImageHere>") == 1 and len(chat.sent.ids) <= 80  # type: ignore[union-attr]


def test_many_images_are_described_as_without_the_engine(shared: SharedModel, tiny: LoadedModel) -> None:
    images = [scene.image for scene in drawn_scenes()[:5]]
    assert shared.describe(images, batch_size=4) == tiny.describe(images)
    assert shared.describe(images[0], num_beams=2) == tiny.describe(images[0], num_beams=2)
