"""Templates: rendering, the published ones and the language model's own, image placeholders, prompt files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import PROJECT
from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import (
    IMAGE_TAG,
    TEMPLATES,
    Template,
    check_placeholders,
    configured_template,
    own_template,
    read_prompts,
    with_image_tag,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)


def test_render_puts_the_instruction_in_its_place_and_nothing_else() -> None:
    assert TEMPLATES["vicuna0"].render("50 % {braces} \\1") == "###Human: 50 % {braces} \\1 ###Assistant: "


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("vicuna0", TEMPLATES["vicuna0_demo"]),
        ("llama2", replace(TEMPLATES["llama2"], system_pattern="{system}<s>[INST] {} [/INST] ", separator="<s>")),
        # Its chat leaves out the end of an answer, which its training has.
        (
            "minigptv2",
            replace(TEMPLATES["minigpt_v2"], first_pattern="<s>[INST] {} [/INST]", separator="<s>", in_pieces=False),
        ),
    ],
)
def test_two_turns_as_in_the_original_chat(name: str, template: Template) -> None:
    chat: dict[str, Any] = json.loads((FIXTURES / "parity_a" / "expected.json").read_text())["chat"][name]
    system = TEMPLATES["vicuna0_demo"].system if name != "minigptv2" else ""
    dialogue = Dialogue(replace(template, system=system))
    question = "Describe this image in detail."
    assert dialogue.prompt(question, images=1) == chat["prompt"]
    dialogue.turns.append(Turn(question, 1, chat["text"]))
    assert dialogue.prompt("How many people are there?") == chat["prompt2"]


def test_the_system_message_of_llama2_is_in_the_first_turn() -> None:
    dialogue = Dialogue(replace(TEMPLATES["llama2"], system="Be kind."), [Turn("One?", 0, "A.")])
    assert dialogue.prompt("Two?") == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nOne? [/INST] A. </s><s>[INST] Two? [/INST] "
    )


def test_braces_in_texts_are_not_replaced() -> None:
    template = Template("H {} A ", "#", system="{} {system}")
    assert template.render("{system} {}") == "{} {system}H {system} {} A "


class TestConfiguredTemplate:
    def test_by_name(self) -> None:
        assert configured_template(ModelConfig(template="llama2")) == TEMPLATES["llama2"]
        with pytest.raises(ConfigError, match=r"model\.template: no template 'lama2'; did you mean 'llama2'"):
            configured_template(ModelConfig(template="lama2"))

    def test_a_published_pattern_brings_its_separator_and_system_pattern(self) -> None:
        cfg = ModelConfig(prompt_template="[INST] {} [/INST] ", end_sym="</s>", system="Be kind.")
        assert configured_template(cfg) == replace(TEMPLATES["llama2"], system="Be kind.")
        assert configured_template(ModelConfig(prompt_template="Q {} A", end_sym="!")) == Template("Q {} A", "!")


class TestOwnTemplate:
    def test_its_own_system_message_is_in_the_first_turn_only(self, tmp_path: Path) -> None:
        template = own_template(tokenizer_folder(tmp_path, CHATML))
        one = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        assert template.render("One?") == one
        dialogue = Dialogue(template, [Turn("One?", 0, "A.")])
        two = "A.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
        assert dialogue.prompt("Two?") == one + two
        assert template.end == "<|im_end|>"
        assert replace(template, system="Hush.").render("One?") == one.replace("Be kind.", "Hush.")

    def test_bos_is_left_to_the_encoder(self, tmp_path: Path) -> None:
        template = own_template(tokenizer_folder(tmp_path, LLAMA))
        assert template.render("One?") == "[INST] One? [/INST] "
        two = Dialogue(template, [Turn("One?", 0, "A.")]).prompt("Two?")
        assert two == "[INST] One? [/INST] A. </s>[INST] Two? [/INST] "

    def test_a_missing_and_an_unusable_one_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has no chat template"):
            own_template(tokenizer_folder(tmp_path / "none", None))
        forgets = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}>{% endif %}{% endfor %}"
        with pytest.raises(ConfigError, match="writes earlier turns in another way"):
            own_template(tokenizer_folder(tmp_path / "forgets", forgets))


def test_a_question_gets_the_image_in_front_unless_it_has_a_placeholder() -> None:
    assert with_image_tag("What is it?") == f"{IMAGE_TAG} What is it?"
    assert with_image_tag(f"In {IMAGE_TAG}, what is it?") == f"In {IMAGE_TAG}, what is it?"


@pytest.mark.parametrize("prompt", ["Describe it.", f"{IMAGE_TAG} and {IMAGE_TAG}"])
def test_placeholders_must_match_the_images(prompt: str) -> None:
    with pytest.raises(DataError, match=r"^here: \d image placeholder\(s\) for 1 image\(s\)"):
        check_placeholders(prompt, 1, "here")


def tokenizer_folder(folder: Path, program: str | None) -> Path:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]")),
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.chat_template = program
    tokenizer.save_pretrained(folder)
    return folder


class TestReadPrompts:
    def test_blank_lines_and_edges_are_ignored(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text(f"\n  {IMAGE_TAG} One. \n\n{IMAGE_TAG} Two.\n")
        assert read_prompts(str(path), "key") == [f"{IMAGE_TAG} One.", f"{IMAGE_TAG} Two."]

    def test_a_line_without_placeholder_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text(f"{IMAGE_TAG} One.\nTwo.\n")
        with pytest.raises(DataError, match=r"p\.txt, line 2: 0 image placeholder"):
            read_prompts(str(path), "key")

    def test_missing_and_empty_files_name_the_key(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"model\.prompt_path: .*no\.txt does not exist"):
            read_prompts(str(tmp_path / "no.txt"), "model.prompt_path")
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(ConfigError, match=r"model\.prompt_path: .* holds no prompt"):
            read_prompts(str(tmp_path / "empty.txt"), "model.prompt_path")

    def test_the_shipped_prompts(self) -> None:
        prompts = read_prompts(str(PROJECT / "prompts" / "alignment.txt"), "key")
        assert len(prompts) == 4
        assert any(prompt.endswith(" Describe this image in detail.") for prompt in prompts)
        assert any("Take a look at this image and describe what you notice." in prompt for prompt in prompts)
