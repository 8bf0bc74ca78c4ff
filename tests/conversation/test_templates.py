"""Named templates, the language model's own, and the prompts of the original's chat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import TEMPLATES, Template, configured_template, own_template

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


def tokenizer_folder(folder: Path, program: str | None) -> Path:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]")),
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.chat_template = program
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("vicuna0", TEMPLATES["vicuna0_demo"]),
        ("llama2", replace(TEMPLATES["llama2"], with_system="{system}<s>[INST] {} [/INST] ", joint="<s>")),
        ("minigptv2", replace(TEMPLATES["minigpt_v2"], opening="<s>[INST] {} [/INST]", joint="<s>")),
    ],
)
def test_the_originals_prompts_of_two_turns(name: str, template: Template) -> None:
    chat: dict[str, Any] = json.loads((FIXTURES / "parity_a" / "expected.json").read_text())["chat"][name]
    system = TEMPLATES["vicuna0_demo"].system if name != "minigptv2" else ""
    dialogue = Dialogue(replace(template, system=system))
    question = "Describe this image in detail."
    assert dialogue.prompt(question, images=1) == chat["prompt"]
    dialogue.turns.append(Turn(question, 1, chat["text"]))
    assert dialogue.prompt("How many people are there?") == chat["prompt2"]


def test_llama2s_system_message_stands_in_the_first_turn() -> None:
    dialogue = Dialogue(replace(TEMPLATES["llama2"], system="Be kind."), [Turn("One?", 0, "A.")])
    assert dialogue.prompt("Two?") == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nOne? [/INST] A. </s><s>[INST] Two? [/INST] "
    )


def test_braces_in_texts_are_no_places() -> None:
    template = Template("H {} A ", "#", system="{} {system}")
    assert template.render("{system} {}") == "{} {system}H {system} {} A "


class TestConfigured:
    def test_by_name(self) -> None:
        assert configured_template(ModelConfig(template="llama2")) == TEMPLATES["llama2"]
        with pytest.raises(ConfigError, match=r"model\.template: no template 'lama2'; did you mean 'llama2'"):
            configured_template(ModelConfig(template="lama2"))

    def test_a_known_pattern_brings_its_turns_along(self) -> None:
        cfg = ModelConfig(prompt_template="[INST] {} [/INST] ", end_sym="</s>", system="Be kind.")
        assert configured_template(cfg) == replace(TEMPLATES["llama2"], system="Be kind.")
        assert configured_template(ModelConfig(prompt_template="Q {} A", end_sym="!")) == Template("Q {} A", "!")


class TestOwn:
    def test_a_system_message_of_its_own_in_the_first_turn_only(self, tmp_path: Path) -> None:
        template = own_template(tokenizer_folder(tmp_path, CHATML))
        one = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        assert template.render("One?") == one
        dialogue = Dialogue(template, [Turn("One?", 0, "A.")])
        two = "A.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
        assert dialogue.prompt("Two?") == one + two
        assert template.end == "<|im_end|>"
        assert replace(template, system="Hush.").render("One?") == one.replace("Be kind.", "Hush.")

    def test_the_first_token_is_left_to_the_encoder(self, tmp_path: Path) -> None:
        template = own_template(tokenizer_folder(tmp_path, LLAMA))
        assert template.render("One?") == "[INST] One? [/INST] "
        two = Dialogue(template, [Turn("One?", 0, "A.")]).prompt("Two?")
        assert two == "[INST] One? [/INST] A. </s>[INST] Two? [/INST] "

    def test_none_and_an_unusable_one_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has no chat template"):
            own_template(tokenizer_folder(tmp_path / "none", None))
        forgets = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}>{% endif %}{% endfor %}"
        with pytest.raises(ConfigError, match="writes earlier turns in another way"):
            own_template(tokenizer_folder(tmp_path / "forgets", forgets))
