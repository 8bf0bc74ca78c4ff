"""The parts of the recipe that its figures rest on: codes, dialogues, the oracle, and the gates."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.conversation.template import PromptEncoder
from minigpt4.conversation.tokenizer import SentencePieceTokenizer
from minigpt4.processors.image import normalize
from minigpt4.scenes.captions import captions_of
from minigpt4.scenes.sampling import sample_split
from minigpt4.scenes.truth import Scene, named_objects
from recipes.tiny.codes import CODE_LENGTH, PIECES, WORDS, encode_scene, position_name
from recipes.tiny.dialogues import TEMPLATE, alignment_prompts, make_dialogue, short_caption, training_scene
from recipes.tiny.gates import check
from recipes.tiny.images import draw_images
from recipes.tiny.language import CodeReader, build_language_model, piece_id
from recipes.tiny.oracle import caption_scores, is_true, oracle_scores
from recipes.tiny.questions import KINDS, ask
from recipes.tiny.tokenizer import train_tokenizer
from recipes.tiny.vision import Heads, VisionModel, accuracies, patch_words

SCENES = [placed.scene for placed in sample_split("val", 60, "recipe-test")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    path = train_tokenizer(tmp_path_factory.mktemp("llama"))
    return PromptEncoder(SentencePieceTokenizer(path), TEMPLATE, CODE_LENGTH)


def test_code_has_a_word_for_every_query() -> None:
    for scene in SCENES:
        words = [WORDS[i] for i in encode_scene(scene)]
        assert len(words) == CODE_LENGTH and words[-1] == scene.background
        for slot, o in enumerate(scene.objects):
            assert words[slot * 5 : slot * 5 + 5] == [o.size, o.colour, o.shape, o.row, o.column]
        assert words.count("none") == 5 * (3 - len(scene.objects))
    assert [position_name(i) for i in (0, 7, 15)] == ["size 0", "shape 1", "background"]


def test_every_caption_of_the_generator_is_true_and_no_other_scenes_caption_is() -> None:
    for number, (scene, other) in enumerate(itertools.pairwise(SCENES)):
        captions = captions_of(scene, random.Random(number))
        assert all(is_true(caption, scene) for caption in captions), captions
        assert not any(is_true(caption, other) for caption in captions)


def test_a_wrong_place_or_size_is_not_true() -> None:
    scene = next(s for s in SCENES if len(s.objects) == 2)
    caption = next(c for c in captions_of(scene, random.Random(0)) if scene.objects[0].size in c.lower())
    wrong = "small" if scene.objects[0].size != "small" else "large"
    assert is_true(caption, scene)
    assert not is_true(caption.lower().replace(scene.objects[0].size, wrong), scene)
    assert caption_scores([caption], [scene])["true"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_questions_have_answers_in_words(kind: str) -> None:
    for number, scene in enumerate([*SCENES, Scene("black", ())]):
        _, question, answer = ask(scene, random.Random(number), kind)
        assert question.endswith("?") and answer.endswith(".")
        assert len(named_objects(answer)) <= 1


def test_dialogues_have_one_image_and_learn_the_answer_only(encoder: PromptEncoder) -> None:
    prompts = alignment_prompts()
    assert len(prompts) == 4
    for number in range(300):
        rng = random.Random(number)
        dialogue = make_dialogue(training_scene(rng), rng, prompts)
        encoded = dialogue.encode(encoder)
        targets = [label for label in encoded.labels if label >= 0]
        assert encoder.tokenizer.decode(targets) == dialogue.answer + "###"
        assert encoded.input_ids.count(-1) == CODE_LENGTH and encoded.input_ids[0] == 1


def test_short_caption_names_everything_and_nothing_else() -> None:
    for scene in SCENES:
        pairs = named_objects(short_caption(scene, random.Random(0)))
        assert sorted(pairs) == sorted((o.colour, o.shape) for o in scene.objects)


def test_tokenizer_is_llamas_kind_with_one_token_a_word(encoder: PromptEncoder) -> None:
    tokenizer = encoder.tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert len({piece_id(tokenizer, piece) for piece in [*PIECES, "###"]}) == len(PIECES) + 1
    for text in ("A large red circle sits above it.", "naïve ☃ 42", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text.strip()


def test_code_reader_reaches_every_weight(encoder: PromptEncoder) -> None:
    torch.manual_seed(0)
    model = build_language_model(encoder.tokenizer.vocab_size)
    reader = CodeReader(model, encoder)
    rng = random.Random(0)
    reader.loss([make_dialogue(training_scene(rng), rng, alignment_prompts()) for _ in range(4)]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_and_heads_fit_together() -> None:
    drawn = draw_images("train", 12, "test", patch=8, empty_share=0.3)
    assert drawn.images.shape == (12, 3, 64, 64) and drawn.codes.shape == (12, 16)
    words = patch_words(drawn.codes, drawn.slots)
    for row, scene in enumerate(drawn.scenes):
        found = {WORDS[i] for i in words[row, :, 1].tolist()} - {"none"}
        assert found == {o.colour for o in scene.objects}
    torch.manual_seed(0)
    model, heads = VisionModel(), Heads()
    heads.loss(*model(normalize(drawn.images)), drawn.codes, drawn.slots).backward()
    assert model.qformer.query_tokens.grad is not None
    assert accuracies(drawn.codes, drawn.codes)["all"] == 1.0


def test_oracle_gives_a_perfect_answerer_full_marks_and_gates_fail_by_name() -> None:
    truth = {"q": 0}

    def answer(scenes: list[Scene], instructions: list[str]) -> list[str]:
        truth["q"] += 1
        return [captions_of(scene, random.Random(0))[0] for scene in scenes]

    scores = oracle_scores(answer, [*SCENES, Scene("tan", ())], alignment_prompts())
    assert truth["q"] == 2
    assert scores["true"] == scores["all objects"] == scores["empty"] == 1.0
    check("language", scores, {"true": 0.9})
    with pytest.raises(MiniGPT4Error, match=r"asked count 0\.000 < 0\.5.*--language-steps"):
        check("language", scores, {"true": 0.9, "asked count": 0.5})


def test_prompt_file_is_the_projects() -> None:
    assert (Path(__file__).resolve().parents[2] / "prompts" / "scenes.txt").is_file()
