"""Questions that join and leave a running batch: each gets the answer that it gets alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import ServingConfig
from minigpt4.serve.engine import Engine, EngineClosedError, QueueFullError
from minigpt4.serve.lane import STEPS_BETWEEN_JOINS, Lane
from minigpt4.serve.reply import CANCELLED, LENGTH, STOP, Reply
from tests.drawn import drawn_scenes
from tests.serve.conftest import SETTINGS, Standstill, question, wait_until

IMAGES = [scene.image for scene in drawn_scenes()]
HOT: dict[str, Any] = {"do_sample": True, "temperature": 1.8, "top_p": 0.95, "max_new_tokens": 30}


def text_of(reply: Reply) -> str:
    """The complete answer."""
    return [answer.text for answer in reply][-1]


class TestAnswers:
    def test_greedy_answers_are_those_of_describe_whatever_else_is_asked(
        self, engine: Engine, pair: dict[str, LoadedModel]
    ) -> None:
        few = IMAGES[:3]
        expected = {name: model.describe(few) for name, model in pair.items()}
        assert expected["aligned"] != expected["stage1"]
        first, second = pair.values()
        replies = []
        for number, image in enumerate(few):  # for four rows
            replies.append(("aligned", number, engine.submit(question(first, image, grows=bool(number)))))
            replies.append(("stage1", number, engine.submit(question(second, image))))
            others = question(first, image, "What is in this image?", seed=number, **HOT)
            replies.append(("other", number, engine.submit(others)))
        penalised = engine.submit(question(first, few[0], repetition_penalty=1.7, min_new_tokens=20))
        assert text_of(penalised) == first.describe(few[0], repetition_penalty=1.7, min_new_tokens=20)
        for name, number, reply in replies:
            answer = text_of(reply)
            assert name == "other" or (answer, reply.finish) == (expected[name][number], STOP)

    def test_a_seed_gives_the_same_answer_alone_and_in_company(self, engine: Engine, tiny: LoadedModel) -> None:
        alone = [text_of(engine.submit(question(tiny, IMAGES[0], seed=seed, **HOT))) for seed in range(4)]
        assert len(set(alone)) > 1
        company = [engine.submit(question(tiny, image, seed=9, **HOT)) for image in IMAGES[1:4]]
        again = [engine.submit(question(tiny, IMAGES[0], seed=seed, **HOT)) for seed in range(4)]
        assert [text_of(reply) for reply in again] == alone
        assert all(text_of(reply) for reply in company)
        free = [engine.submit(question(tiny, IMAGES[0], **HOT)) for _ in range(4)]
        assert len({text_of(reply) for reply in free}) > 1

    def test_each_answer_has_its_own_stop_strings_and_length(self, engine: Engine, tiny: LoadedModel) -> None:
        whole = tiny.describe(IMAGES[0])
        stop, later = whole[10:14], whole[16:20]
        replies = [
            engine.submit(question(tiny, IMAGES[0], stops=(later, stop))),
            engine.submit(question(tiny, IMAGES[0])),
            engine.submit(question(tiny, IMAGES[0], max_new_tokens=3)),
        ]
        assert text_of(replies[0]) == whole[: whole.index(stop)].strip() and replies[0].finish == STOP
        assert text_of(replies[1]) == whole
        assert text_of(replies[2]) == tiny.describe(IMAGES[0], max_new_tokens=3)
        assert (replies[2].finish, replies[2].tokens) == (LENGTH, 3)

    def test_an_answer_grows_and_is_never_taken_back(self, engine: Engine, tiny: LoadedModel) -> None:
        reply = engine.submit(question(tiny, IMAGES[0]))
        texts = [answer.text for answer in reply]
        assert len(texts) > 3 and texts[-1] == tiny.describe(IMAGES[0])
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))

    @pytest.mark.parametrize("settings", [{"num_beams": 3}, {"static_cache": True}])
    def test_beams_are_computed_between_the_steps_of_others(
        self, engine: Engine, tiny: LoadedModel, settings: dict[str, Any]
    ) -> None:
        other = engine.submit(question(tiny, IMAGES[1]))
        beams = engine.submit(question(tiny, IMAGES[0], **settings))
        assert text_of(beams) == tiny.describe(IMAGES[0], **settings)
        assert text_of(other) == tiny.describe(IMAGES[1]) and beams.finish == STOP

    def test_a_question_joins_a_few_steps_after_the_last_one(
        self, engine: Engine, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        join, step = Lane.join, Lane.step
        monkeypatch.setattr(Lane, "join", lambda lane, *some: (events.append("join"), join(lane, *some))[1])
        monkeypatch.setattr(Lane, "step", lambda lane: (events.append("step"), step(lane))[1])
        first = engine.submit(question(tiny, IMAGES[0], min_new_tokens=60, max_new_tokens=60))
        wait_until(lambda: first.tokens > 0)
        assert text_of(engine.submit(question(tiny, IMAGES[1]))) == tiny.describe(IMAGES[1])
        assert events[: STEPS_BETWEEN_JOINS + 2] == ["join", *["step"] * STEPS_BETWEEN_JOINS, "join"]
        first.cancel()

    def test_a_temperature_of_nearly_nothing_is_greedy(self, engine: Engine, tiny: LoadedModel) -> None:
        cold = engine.submit(question(tiny, IMAGES[0], do_sample=True, temperature=1e-40))
        assert text_of(cold) == tiny.describe(IMAGES[0])

    def test_a_turn_without_an_image(self, engine: Engine, tiny: LoadedModel) -> None:
        expected = tiny.chat().ask("How many objects are there?")
        assert text_of(engine.submit(question(tiny, text="How many objects are there?"))) == expected


class TestQueue:
    def test_more_than_may_wait_are_refused(self, engine: Engine, tiny: LoadedModel, standstill: Standstill) -> None:
        first = engine.submit(question(tiny, IMAGES[0]))
        wait_until(lambda: not engine.waiting)  # its turn has begun, as far as it goes
        waiting = [engine.submit(question(tiny, image)) for image in IMAGES[: SETTINGS.waiting]]
        with pytest.raises(QueueFullError, match=r"10 requests wait already.*serving.waiting"):
            engine.submit(question(tiny, IMAGES[0]))
        waiting[-1].cancel()
        assert waiting[-1].finish == CANCELLED
        late = engine.submit(question(tiny, IMAGES[6]))
        standstill.release()
        asked = [IMAGES[0], *IMAGES[: SETTINGS.waiting - 1], IMAGES[6]]
        assert [text_of(reply) for reply in (first, *waiting[:-1], late)] == [tiny.describe(image) for image in asked]

    def test_who_leaves_frees_a_row(self, engine: Engine, tiny: LoadedModel) -> None:
        long = [engine.submit(question(tiny, IMAGES[0], min_new_tokens=300, max_new_tokens=300)) for _ in range(4)]
        for reply in long:
            growing = iter(reply)
            next(growing)
            growing.close()  # type: ignore[attr-defined]
        wait_until(lambda: all(reply.done for reply in long))
        assert [reply.finish for reply in long] == [CANCELLED] * 4
        assert all(reply.tokens < 300 for reply in long) and engine.running == 0
        assert text_of(engine.submit(question(tiny, IMAGES[1]))) == tiny.describe(IMAGES[1])

    def test_what_cannot_be_answered_is_refused_at_once(self, engine: Engine, tiny: LoadedModel) -> None:
        with pytest.raises(DataError, match=r"there is room for 112 beside an answer of 400"):
            engine.submit(question(tiny, text="How many? " * 60, max_new_tokens=400))
        one = question(tiny, IMAGES[0])
        with pytest.raises(DataError, match=r"room for 2 images, and there are 1"):
            engine.submit(replace(one, ids=one.ids * 2))


class TestFaults:
    def test_an_error_ends_what_it_came_from_and_nothing_else(
        self, engine: Engine, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> None:
            raise RuntimeError("no memory left")

        with monkeypatch.context() as patch:
            patch.setattr(Lane, "step", fails)
            with pytest.raises(RuntimeError, match="no memory left"):
                text_of(engine.submit(question(tiny, IMAGES[0])))
        assert engine.running == 0
        assert text_of(engine.submit(question(tiny, IMAGES[0]))) == tiny.describe(IMAGES[0])

    def test_closing_ends_what_runs_and_what_waits(self, tiny: LoadedModel) -> None:
        engine = Engine([tiny], ServingConfig(rows=1))
        replies = [engine.submit(question(tiny, IMAGES[0], min_new_tokens=400, max_new_tokens=400)) for _ in range(2)]
        wait_until(lambda: replies[0].tokens > 0)
        engine.close()
        assert not engine.alive
        for reply in replies:
            with pytest.raises(EngineClosedError, match="the server has ended before the answer was complete"):
                text_of(reply)
        with pytest.raises(EngineClosedError):
            engine.submit(question(tiny, IMAGES[0]))

    def test_memory_that_is_not_there_is_noticed_at_the_start(
        self, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = 2 * 4 * 192 * 4 * 512  # keys and values, layers, width, bytes, tokens
        monkeypatch.setattr("minigpt4.serve.lane.free_memory", lambda _: 6 * row)
        with pytest.raises(ConfigError, match=r"keys and values of 7 answers of 512 tokens.*set serving.rows=3"):
            Engine([tiny], ServingConfig(rows=7))
        with Engine([tiny], ServingConfig()) as engine:
            assert (engine.rows, engine.context) == (3, 512)


def test_images_are_encoded_once(engine: Engine, tiny: LoadedModel) -> None:
    image = IMAGES[9]
    before = engine.features.misses
    for _ in range(2):
        text_of(engine.submit(question(tiny, image)))
    assert engine.features.misses == before + 1 and engine.features.hits > 0
