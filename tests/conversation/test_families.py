"""Each family's own chat template and tokenizer: what a model reads, what is trained on, and where an answer ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.template import IMAGE_TAG, PromptEncoder, configured_template, own_template
from minigpt4.conversation.tokenizer import load_tokenizer
from tests.families import LANGUAGE_MODELS

WRITTEN = {
    "LLaMA": "[BOS][INST] {} [/INST] [[A dog.</s>]][BOS][INST] Why? [/INST] [[It barks.</s>]]",
    "Mistral": "<s>[INST]{}[/INST][[A dog.</s>]][INST]Why?[/INST][[It barks.</s>]]",
    "Qwen3": (
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n[[A dog.<|im_end|>]]\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[[It barks.<|im_end|>]]"
    ),
    "Gemma 3": (
        "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n[[A dog.<end_of_turn>]]\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n[[It barks.<end_of_turn>]]"
    ),
    "SmolLM2": (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        "[[A dog.<|im_end|>]]\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n[[It barks.<|im_end|>]]"
    ),
}
"""What a conversation with an image looks like; in double brackets, what is trained on."""


def encoder_of(folder: Path, name: str) -> PromptEncoder:
    """The prompt encoder of a family's folder, with two tokens an image; no weights are needed."""
    family = LANGUAGE_MODELS[name]
    folder.mkdir(exist_ok=True)
    family.tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": family.kind}))
    template = configured_template(ModelConfig(llama_model=str(folder), template="chat"))
    return PromptEncoder(load_tokenizer(folder), template, num_image_tokens=2, max_txt_len=400)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_what_is_read_and_what_is_trained_on(tmp_path: Path, name: str) -> None:
    encoder = encoder_of(tmp_path, name)
    encoded = encoder.encode_example("Why?", "It barks.", earlier=[(f"{IMAGE_TAG} What is it?", "A dog.")])
    shown = "".join(f"[[{text}]]" if trained else text for text, trained in encoder.labelled_segments(encoded))
    expected = WRITTEN[name].format("<Img><ImageHere>*2</Img> What is it?")
    assert shown.replace(" ", "") == expected.replace(" ", "")
    assert encoder.tokenizer.special_names[encoded.labels[-1]] == encoder.template.end


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_prompt_in_chat_is_the_prompt_of_training(tmp_path: Path, name: str) -> None:
    encoder = encoder_of(tmp_path, name)
    question = f"{IMAGE_TAG} What is it?"
    trained = encoder.encode_example(question, "A dog.")
    assert trained.input_ids[: -trained.num_targets] == encoder.prompt(question)


def test_thoughts_are_empty_in_the_newest_turn_only(tmp_path: Path) -> None:
    template = encoder_of(tmp_path, "Qwen3").template
    assert template.thought == "<think>\n\n</think>\n\n"
    assert template.render("Why?").endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    first, answer, last = (piece.text for piece in template.pieces([("What?", "A dog.")], "Why?"))
    assert "<think>" not in first + answer and last.endswith(template.thought)


def test_a_template_that_names_the_day_is_the_same_every_day(tmp_path: Path) -> None:
    LANGUAGE_MODELS["SmolLM2"].tokenizer(tmp_path)
    program = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    program += "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    (tmp_path / "chat_template.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}. " + program)
    assert (
        own_template(tmp_path).render("Hi.")
        == "Today is 26 Jul 2024. <|im_start|>user Hi.<|im_end|><|im_start|>assistant "
    )
