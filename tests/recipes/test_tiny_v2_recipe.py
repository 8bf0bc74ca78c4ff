"""The parts of the recipe of the tiny MiniGPT-v2: strip codes, its tokenizer, dialogues, and what judges answers."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt4.common.files import asset
from minigpt4.conversation.template import PromptEncoder
from minigpt4.conversation.tokenizer import SentencePieceTokenizer
from minigpt4.scenes.questions import TASKS, questions_of
from minigpt4.scenes.sampling import PlacedScene, sample_split
from minigpt4.scenes.truth import Scene
from recipes.tiny_v2.__main__ import SOURCE
from recipes.tiny_v2.dialogues import (
    COMPARING,
    FINDING,
    READING,
    SETTLING,
    TEMPLATE,
    instruction,
    make_dialogue,
    training_scenes,
)
from recipes.tiny_v2.language import (
    COMPARING_SETTINGS,
    FINDING_SETTINGS,
    READING_SETTINGS,
    StripReader,
    extend_vocabulary,
    load_language_model,
)
from recipes.tiny_v2.oracle import is_right, task_scores
from recipes.tiny_v2.strips import CODE_WIDTH, GROUPS, NUM_STRIPS, SIDES, StripScene, blurred, codes, strip_scene, waves
from recipes.tiny_v2.tokenizer import MARKS, extend_tokenizer
from recipes.tiny_v2.vision import StripVision, draw_strips, strip_scores

PLACED = list(sample_split("val", 200, "recipe-v2-test"))
SHOWN = [strip_scene(placed) for placed in PLACED]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    path = extend_tokenizer(SOURCE / "llama", tmp_path_factory.mktemp("llama"))
    return PromptEncoder(SentencePieceTokenizer(path), TEMPLATE, NUM_STRIPS)


def words_of(shown: StripScene, strip: int) -> list[str]:
    return [group[index] for group, index in zip(GROUPS.values(), shown.words[strip].tolist(), strict=True)]


def test_strips_show_the_objects_that_lie_in_them() -> None:
    hidden = 0
    for shown in SHOWN:
        found = set()
        for strip in range(NUM_STRIPS):
            size, colour, shape, background = words_of(shown, strip)
            assert background == shown.scene.background
            row, column = divmod(strip, 2)
            if size == "none":
                assert (colour, shape) == ("none", "none") and not shown.sides[strip].any()
                continue
            (o,) = (o for o in shown.scene.objects if (o.size, o.colour, o.shape) == (size, colour, shape))
            found.add(size)
            assert o.box is not None and torch.equal(shown.sides[strip], waves(o.box))
            assert o.box.top < (row + 1) / 8 and o.box.bottom > row / 8
            assert o.box.left < (column + 1) / 2 and o.box.right > column / 2
        hidden += len(shown.scene.objects) - len(found)
    assert hidden <= 0.02 * sum(len(shown.scene.objects) for shown in SHOWN)


def test_codes_are_words_and_waves_from_which_the_sides_can_be_told() -> None:
    shown = next(s for s in SHOWN if len(s.scene.objects) == 1)
    code = shown.code()
    assert code.shape == (NUM_STRIPS, CODE_WIDTH)
    assert torch.equal(code[:, :-SIDES].sum(1), torch.full((NUM_STRIPS,), float(len(GROUPS))))
    (o,) = shown.scene.objects
    assert o.box is not None
    strip = int(shown.words[:, 0].argmax())
    sine, cosine = code[strip, -SIDES:].view(4, -1, 2)[3, 0].tolist()
    assert math.atan2(sine, cosine) / math.pi == pytest.approx(o.box.bottom, abs=1e-5)


def test_blurring_leaves_no_code_exact_and_none_unreadable() -> None:
    clean = torch.stack([shown.code() for shown in SHOWN])
    dirty = blurred(clean, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(dirty, blurred(clean, torch.Generator().manual_seed(0), 1.0))
    assert torch.equal(clean, blurred(clean, torch.Generator().manual_seed(0), 0.0))
    assert not (dirty == clean).all(-1).any()
    sizes = slice(0, len(GROUPS["size"]))
    right = dirty[..., sizes].argmax(-1).eq(clean[..., sizes].argmax(-1)).float().mean()
    assert 0.9 < right < 1


def test_the_tokenizer_keeps_its_ids_and_writes_a_mark_as_one_token(encoder: PromptEncoder) -> None:
    old = SentencePieceTokenizer(SOURCE / "llama" / "tokenizer.model")
    new = encoder.tokenizer
    text = "There is a large red circle at the top left."
    assert new.encode(text) == old.encode(text)
    assert new.vocab_size == old.vocab_size + len(MARKS)
    box = new.encode("{<5><30><45><100>}")
    assert len(box) == 1 + 5 + 8 and new.decode(box) == "{<5><30><45><100>}"
    assert all(len(new.encode(mark)) == 2 for mark in MARKS)


def test_dialogues_ask_every_task_and_learn_the_answers_only(encoder: PromptEncoder) -> None:
    shown = list(training_scenes(40, "test"))
    tasks = set()
    for number in range(300):
        dialogue = make_dialogue(shown, random.Random(number), READING)
        encoded = dialogue.encode(encoder)
        targets = [label for label in encoded.labels if label >= 0]
        answers = [answer for _, answer in dialogue.turns]
        assert encoder.tokenizer.decode(targets).replace(" ", "") == "".join(answers).replace(" ", "")
        assert targets.count(2) == len(answers) and encoded.input_ids.count(-1) == NUM_STRIPS
        tasks |= {question.split("]")[0][1:] for question, _ in dialogue.turns if question.startswith("[")}
    assert tasks == set(READING.shares) == set(FINDING.shares) == set(TASKS)


def test_finding_is_about_named_objects_among_others() -> None:
    shown = list(training_scenes(60, "test"))
    dialogues = [make_dialogue(shown, random.Random(number), FINDING) for number in range(300)]
    crowded = sum(len(dialogue.shown.scene.objects) > 1 for dialogue in dialogues)
    easy = sum(dialogue.turns[0][0].endswith(("background like?", "objects are there?")) for dialogue in dialogues)
    assert crowded > 0.8 * 300 and easy < 0.1 * 300


def test_opposites_come_into_the_relations_slowly() -> None:
    shown = list(training_scenes(60, "test"))
    for step, least, most in ((0, 0.0, 0.0), (225, 0.1, 0.3), (599, 0.4, 0.6)):
        share = COMPARING_SETTINGS.share_of_opposites(step)
        drawn = [make_dialogue(shown, random.Random(number), COMPARING, share) for number in range(300)]
        asked = [question for dialogue in drawn for question, _ in dialogue.turns]
        assert all(any(f" {word} " in q for word in ("above", "below", "left of", "right of")) for q in asked)
        assert least <= sum(" below " in q or " right of " in q for q in asked) / 300 <= most
    assert READING_SETTINGS.share_of_opposites(0) == 1
    assert SETTLING.kinds["vqa relation"] > 1 and SETTLING.shares.keys() == FINDING.shares.keys()


def test_the_language_model_begins_as_the_old_one_and_learns_in_every_weight(encoder: PromptEncoder) -> None:
    torch.manual_seed(0)
    model = load_language_model(SOURCE / "llama")
    extend_vocabulary(model, encoder.tokenizer.vocab_size)
    reader = StripReader(model, encoder)
    shown = list(training_scenes(8, "test"))
    dialogues = [make_dialogue(shown, random.Random(number), READING) for number in range(8)]
    for settings in (READING_SETTINGS, FINDING_SETTINGS):
        reader.zero_grad()
        reader.loss(dialogues, torch.Generator().manual_seed(0), settings).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reader.parameters())
    assert reader.model.get_output_embeddings().weight.shape[0] == encoder.tokenizer.vocab_size
    embeds = reader.prompt_embeds(shown, ["<Img><ImageHere></Img> [vqa] How many objects are there?"] * 8)
    assert len(embeds) == 8 and torch.equal(embeds[0][0], embeds[1][0]) and not torch.equal(embeds[0], embeds[1])


def test_vision_learns_from_strips() -> None:
    drawn = draw_strips("train", 24, "test", empty_share=0.2)
    assert drawn.images.shape == (24, 3, 64, 64) and drawn.words.shape == (24, NUM_STRIPS, len(GROUPS))
    assert any(not scene.objects for scene in drawn.scenes)
    torch.manual_seed(0)
    model = StripVision(SOURCE / "eva_vit.pth")
    assert model(drawn.images[:2]).shape == (2, NUM_STRIPS, 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = model.loss(drawn.images, drawn.words, drawn.sides)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert set(strip_scores(model, drawn)) == {"object", *GROUPS, "sides"}


def test_a_linear_map_reads_the_shipped_vision_encoders_strips() -> None:
    drawn = draw_strips("val", 240, "test", empty_share=0.0)
    with torch.no_grad():
        strips = StripVision(asset("tiny_v2/eva_vit.pth"))(drawn.images).double()
    inputs = torch.cat([strips, strips.new_ones(*strips.shape[:2], 1)], -1)
    targets = codes(drawn.words, drawn.sides).double()
    learned = torch.linalg.lstsq(inputs[:200].flatten(0, 1), targets[:200].flatten(0, 1)).solution
    found, true = inputs[200:] @ learned, targets[200:]
    start = 0
    for name, words in GROUPS.items():
        part = slice(start, start := start + len(words))
        assert found[..., part].argmax(-1).eq(true[..., part].argmax(-1)).float().mean() > 0.9, name


def test_right_answers_are_right_and_those_of_another_scene_mostly_are_not() -> None:
    scenes = [shown.scene for shown in SHOWN[:60]]
    asked: list[str] = []

    def truth(shift: int) -> dict[str, float]:
        def answer(rows: list[int], texts: list[str]) -> list[str]:
            asked.extend(texts)
            queues = {
                (row, task): [
                    q.answers[0] for q in questions_of(scenes[row], task, random.Random(f"test-{task}-{row}"))
                ]
                for row in range(len(scenes))
                for task in TASKS
            }
            order = [(row, task, at) for row in range(60) for task in TASKS for at in range(len(queues[row, task]))]
            other = [queues[(row + shift) % 60, task] for row, task, _ in order]
            return [found[min(at, len(found) - 1)] for found, (_, _, at) in zip(other, order, strict=True)]

        return task_scores(answer, scenes, "test")

    right, wrong = truth(0), truth(7)
    assert set(right.values()) == {1.0}
    assert wrong["refer name"] < 0.4 and wrong["detection all"] < 0.2 and wrong["caption caption"] < 0.2
    assert any(text.startswith("[refer] where is the ") for text in asked)


def test_boxes_are_right_from_an_overlap_of_a_half_and_with_their_names() -> None:
    scene = next(s.scene for s in SHOWN if len(s.scene.objects) == 2)
    question = questions_of(scene, "detection", random.Random(0))[0]
    assert is_right(question, question.answers[0], scene)
    assert not is_right(question, question.answers[0].split("<delim>")[0], scene)
    assert not is_right(question, question.answers[0].replace(scene.objects[0].colour, "brown"), scene)
    box = question.boxes[0]
    shifted = replace(box, left=box.left + 0.6 * (box.right - box.left))
    assert not is_right(question, question.answers[0].replace(box.text, shifted.text), scene)


def test_prompts_are_the_projects_and_empty_scenes_are_asked_about() -> None:
    empty = strip_scene(PlacedScene(Scene("plain", ()), (), "0"))
    assert not empty.sides.any() and words_of(empty, 3) == ["none", "none", "none", "plain"]
    assert {make_dialogue([empty], random.Random(i), READING).turns[0][1] for i in range(60)} >= {"0", "no", "plain"}
    texts = {
        instruction(questions_of(SHOWN[0].scene, "refer", random.Random(0))[0], random.Random(i)) for i in range(30)
    }
    assert len(texts) == len([line for line in Path("prompts/refer.txt").read_text().splitlines() if line])
