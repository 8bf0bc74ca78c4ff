"""The model as a Python object, on the tiny model that ships with the package."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4 import load
from minigpt4.api import LoadedModel
from minigpt4.common.boxes import TASKS, Box
from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError, DataError
from minigpt4.common.files import asset
from minigpt4.conversation.template import Template
from minigpt4.models.generation import Answer
from minigpt4.models.minigpt4 import MiniGPT4
from tests.drawn import drawn_scenes
from tests.processors.damaged import damaged_files

STAGE1 = asset("tiny/stage1.pth")


@contextmanager
def counted_passes(model: LoadedModel) -> Iterator[list[int]]:
    """Forward passes of the language model."""
    passes: list[int] = []
    hook = model.model.llama_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


class TestDescribe:
    def test_the_answer_follows_the_image(self, tiny: LoadedModel) -> None:
        answers = tiny.describe([scene.image for scene in drawn_scenes()])
        told = [scene.is_named_in(answer) for scene, answer in zip(drawn_scenes(), answers, strict=True)]
        swapped = [
            scene.is_named_in(answer) for scene, answer in zip(drawn_scenes(), answers[1:] + answers[:1], strict=True)
        ]
        assert sum(told) >= 8
        assert sum(swapped) <= 1

    def test_one_image_any_form_any_batch(self, tiny: LoadedModel, tmp_path: Path) -> None:
        images = [scene.image for scene in drawn_scenes(5)]
        expected = tiny.describe(images)
        path = drawn_scenes()[0].save(tmp_path / "a.png")
        assert [tiny.describe(image) for image in images] == expected
        assert tiny.describe(images, batch_size=2) == expected
        for form in (path, Path(path), Path(path).read_bytes(), np.asarray(images[0]), (images[0],)):
            answer = tiny.describe(form)
            assert answer in (expected[0], [expected[0]])

    def test_a_question_each(self, tiny: LoadedModel) -> None:
        image = next(scene.image for scene in drawn_scenes() if len(scene.words) == 2)
        answers = tiny.describe([image, image], ["How many objects are there?", "Describe this image in detail."])
        assert answers[0] == "There are two objects."
        assert answers[1] == tiny.describe(image)

    def test_settings_change_the_answer(self, tiny: LoadedModel) -> None:
        image = drawn_scenes()[1].image
        assert len(tiny.describe(image, max_new_tokens=3)) < len(tiny.describe(image))
        torch.manual_seed(0)
        sampled = {tiny.describe(image, do_sample=True, temperature=1.8, top_p=1.0) for _ in range(5)}
        assert len(sampled) > 1

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({"num_beam": 2}, ConfigError, "did you mean 'num_beams'"),
            ({"prompt": ["a", "b", "c"]}, DataError, "3 prompts for 2 images"),
            ({"prompt": 3}, DataError, "prompt is of type int"),
            ({"batch_size": 0}, ConfigError, "batch_size is 0"),
            ({"prompt": "word " * 600}, DataError, "there is room for"),
            ({"prompt": "<ImageHere> and <ImageHere>"}, DataError, "2 image placeholder"),
        ],
    )
    def test_mistakes_are_named(
        self, tiny: LoadedModel, call: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        given = {"prompt": None} | call
        images = [drawn_scenes()[0].image] * 2
        prompt = given["prompt"]
        with pytest.raises(error, match=message):
            tiny.describe(images if prompt != 3 else images[0], **given)


class TestStream:
    def test_it_grows_to_the_answer(self, tiny: LoadedModel) -> None:
        image = drawn_scenes()[0].image
        growing = list(tiny.stream(image))
        assert growing[-1] == tiny.describe(image)
        assert len(growing) > 10
        assert all(later.startswith(earlier) for earlier, later in pairwise(growing))
        assert not any("#" in text for text in growing)

    def test_the_first_text_takes_one_pass_and_stopping_ends_them(self, tiny: LoadedModel) -> None:
        with counted_passes(tiny) as passes:
            stream = tiny.stream(drawn_scenes()[0].image)
            assert next(stream)
            assert len(passes) == 1
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            assert len(passes) == 2
            tiny.describe(drawn_scenes()[0].image, max_new_tokens=1)
            assert len(passes) == 3

    def test_beams_come_as_one_piece(self, tiny: LoadedModel) -> None:
        assert len(list(tiny.stream(drawn_scenes()[0].image, num_beams=2))) == 1


class TestChat:
    def test_later_questions_are_about_the_image(self, tiny: LoadedModel) -> None:
        for number in (1, 2):
            scene = next(scene for scene in drawn_scenes() if len(scene.words) == number)
            chat = tiny.chat()
            assert scene.is_named_in(chat.ask("Describe this image in detail.", [scene.image]))
            assert ("one", "two")[number - 1] in chat.ask("How many objects are there?")
            assert chat.prompt.count("<ImageHere>") == 1
            assert [turn.images for turn in chat.turns] == [1, 0]

    def test_undo_regenerate_restart(self, tiny: LoadedModel) -> None:
        chat, image = tiny.chat(), drawn_scenes()[0].image
        first = chat.ask("Describe this image in detail.", [image])
        chat.ask("What is in this picture?", [drawn_scenes()[1].image])
        assert chat.undo() == "What is in this picture?"
        assert list(chat.regenerate())[-1] == first
        assert len(chat.turns) == 1
        chat.restart()
        assert chat.turns == [] and chat.prompt == ""
        with pytest.raises(DataError, match="nothing was asked yet"):
            chat.undo()

    def test_a_refused_question_leaves_the_conversation_unchanged(self, tiny: LoadedModel) -> None:
        chat = tiny.chat()
        answer = chat.ask("Describe this image in detail.", [drawn_scenes()[0].image])
        for question, images in (("What?", [b"nothing"]), ("", []), ("word " * 600, []), ("<ImageHere>?", [])):
            with pytest.raises(DataError):
                chat.ask(question, images)
        for settings in ({"num_beam": 2}, {"max_new_tokens": -1}):
            with pytest.raises(ConfigError):
                chat.regenerate(**settings)  # type: ignore[typeddict-item]
        assert [turn.answer for turn in chat.turns] == [answer]
        assert chat.ask("How many objects are there?")

    def test_a_stopped_answer_stays_as_far_as_it_came(self, tiny: LoadedModel) -> None:
        chat = tiny.chat()
        stream = chat.stream("Describe this image in detail.", [drawn_scenes()[0].image])
        shown = [next(stream) for _ in range(4)][-1]
        stream.close()  # type: ignore[attr-defined]
        assert chat.turns[-1].answer == shown
        assert chat.ask("How many objects are there?")

    def test_a_full_context_drops_old_turns_but_not_the_image(self, tiny: LoadedModel) -> None:
        chat, scene = tiny.chat(), drawn_scenes()[0]
        chat.ask("Describe this image in detail.", [scene.image])
        for _ in range(30):
            chat.ask("What is in this picture?")
            if chat.dropped:
                break
        assert chat.dropped
        assert chat.prompt.count("<ImageHere>") == 1
        assert len(chat.sent.ids) <= tiny.model.max_prompt_tokens(tiny.defaults)  # type: ignore[union-attr]


def test_threads_do_not_disturb_each_other(tiny: LoadedModel) -> None:
    images = [scene.image for scene in drawn_scenes()]
    expected, found = tiny.describe(images), {}

    def work(number: int) -> None:
        found[number] = list(tiny.stream(images[number]))[-1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(images))] == expected


ODD = [
    *(
        "?",
        " ",
        "\n\n",
        "\x00",
        "\ufffd",
        "###",
        "### ###",
        "###Human: ###Assistant:",
        "</s>",
        "<s><s>",
        "{}",
        "{system}",
    ),
    *(
        "<Img></Img>",
        "<ImageHere>",
        "<Img><ImageHere></Img>",
        "$$",
        "\u202eright to left",
        "\U0001f600" * 20,
        "Ã©\u0301",
    ),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:b)", "'; DROP TABLE x; --"),
    *(
        "a" * 200,
        "word " * 200,
        "\u4f60\u597d",
        "\u0627\u0644",
        "\ud83d",
        "\t",
        "%s %d",
        "\\",
        '"',
        "`",
        "../../etc",
        "NaN",
    ),
    *("1" * 50, "-1", "[INST] [/INST]", "<<SYS>>", "<|im_end|>", "\u200b", "\x1b[31m", "\r\n", "&lt;", "None", "true"),
    *("#", "##", "####", "What?", "WHAT", "wHaT iS tHiS"),
]


def test_50_odd_prompts_are_answered_or_refused(tiny: LoadedModel) -> None:
    image, outcomes = drawn_scenes()[0].image, {"answer": 0, "refusal": 0}
    assert len(ODD) >= 50
    for prompt in ODD:
        try:
            assert isinstance(tiny.describe(image, prompt, max_new_tokens=5), str)
            outcomes["answer"] += 1
        except DataError:
            outcomes["refusal"] += 1
    assert outcomes["answer"] > 40
    assert outcomes["refusal"] >= 1


def test_200_damaged_files_are_answered_or_refused_and_leave_nothing_behind(tiny: LoadedModel) -> None:
    outcomes = {"answer": 0, "refusal": 0}
    files = list(damaged_files(200))

    def work(some: list[bytes]) -> int:
        for data in some:
            try:
                chat = tiny.chat()
                chat.ask("What is in this picture?", [data], max_new_tokens=2)
                outcomes["answer"] += 1
            except DataError:
                outcomes["refusal"] += 1
        gc.collect()
        return sum(issubclass(type(found), (Image.Image, torch.Tensor)) for found in gc.get_objects())

    before = work(files[:40])
    assert work(files[40:]) <= before + 5
    assert min(outcomes.values()) > 20


class TestLoad:
    def test_another_projection_shares_the_frozen_parts(self, tiny: LoadedModel) -> None:
        other = tiny.with_projection(STAGE1)
        image = drawn_scenes()[0].image
        assert other.describe(image) != tiny.describe(image)
        assert other.model.llama_model is tiny.model.llama_model
        assert other.model.visual_encoder is tiny.model.visual_encoder
        assert other.describe(image) == load(ckpt=STAGE1, device="cpu").describe(image)

    def test_a_checkpoint_of_another_template_is_refused(self, tiny: LoadedModel, tmp_path: Path) -> None:
        state = {"model": tiny.model.trainable_state(), "metadata": {"prompt_template": "[INST] {} [/INST]"}}
        write_checkpoint(tmp_path / "c.pth", state)
        for attempt in (lambda: tiny.with_projection(tmp_path / "c.pth"), lambda: load(ckpt=tmp_path / "c.pth")):
            with pytest.raises(CheckpointError, match=r"was trained with prompt_template"):
                attempt()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ({"device": "gpu"}, "device: 'gpu' should be"),
            ({"device": "cuda:99"}, "there is no 'cuda:99' here"),
            ({"precision": "int3"}, "precision: 'int3' should be one of"),
            ({"options": ["model.ckpt=null"]}, "no checkpoint"),
            ({"options": ["model.nonsense=1"]}, "unknown key"),
            ({"cfg_path": "none.yaml"}, "none.yaml does not exist"),
        ],
    )
    def test_mistakes_are_named(self, call: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(**call)

    def test_importing_the_package_brings_no_torch(self) -> None:
        code = "import minigpt4, sys; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def test_a_misspelt_task_is_remarked_on_once_in_the_log(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, model = drawn_scenes()[0].image, copy(tiny)
    model._warned = set()
    model.describe(image, "[refre] it", max_new_tokens=1)
    assert not caplog.messages  # a model without tasks takes any text
    monkeypatch.setattr(Template, "tasks", TASKS)
    model.describe([image, image], ["[refre] it", "[refer] it"], max_new_tokens=1)
    chat = model.chat()
    chat.ask("[refre] it", [image], max_new_tokens=1)
    chat.ask("[vqa] what?", max_new_tokens=1)
    remark = "[refre] is no task; did you mean 'refer'?"
    assert caplog.messages == [remark] and [turn.remark for turn in chat.turns] == [remark, ""]


def test_answers_know_their_boxes(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Answer("<p>it</p> {<10><20><50><80>}", (1, 2))
    monkeypatch.setattr(MiniGPT4, "generate", lambda self, prompts, *_, **__: [said] * len(prompts))
    monkeypatch.setattr(MiniGPT4, "stream", lambda *_, **__: (step for step in (Answer("<p>", (1,)), said)))
    image = drawn_scenes()[0].image
    expected = [Box(0.1, 0.2, 0.5, 0.8, "it")]
    assert tiny.describe(image).boxes == expected
    assert [answer.boxes for answer in tiny.describe([image, image])] == [expected] * 2
    assert [answer.boxes for answer in tiny.stream(image)] == [[], expected]
    assert tiny.chat().ask("[refer] it", [image]).boxes == expected
