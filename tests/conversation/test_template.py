from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import PROJECT
from minigpt4.conversation.template import IMAGE_TAG, Template, check_placeholders, read_prompts, with_image_tag

TEMPLATE = Template(pattern="###Human: {} ###Assistant: ", end="###")


def test_render_puts_the_instruction_in_its_place_and_nothing_else() -> None:
    assert TEMPLATE.render("50 % {braces} \\1") == "###Human: 50 % {braces} \\1 ###Assistant: "


@pytest.mark.parametrize(
    ("text", "kept"), [("a dog ###Human: more ###", "a dog"), (" a # dog ## ", "a # dog ##"), ("###", "")]
)
def test_cut_keeps_what_stands_before_the_first_end(text: str, kept: str) -> None:
    assert TEMPLATE.cut(text) == kept


def test_without_an_end_nothing_is_cut() -> None:
    assert Template(pattern="{}", end="").cut(" a ### b ") == "a ### b"


def test_a_question_gets_the_picture_in_front_unless_it_places_it() -> None:
    assert with_image_tag("What is it?") == f"{IMAGE_TAG} What is it?"
    assert with_image_tag(f"In {IMAGE_TAG}, what is it?") == f"In {IMAGE_TAG}, what is it?"


@pytest.mark.parametrize("prompt", ["Describe it.", f"{IMAGE_TAG} and {IMAGE_TAG}"])
def test_placeholders_must_match_the_pictures(prompt: str) -> None:
    with pytest.raises(DataError, match=r"^here: \d image placeholder\(s\) for 1 image\(s\)"):
        check_placeholders(prompt, 1, "here")


class TestReadPrompts:
    def test_blank_lines_and_edges_are_ignored(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text(f"\n  {IMAGE_TAG} One. \n\n{IMAGE_TAG} Two.\n")
        assert read_prompts(str(path), "key") == [f"{IMAGE_TAG} One.", f"{IMAGE_TAG} Two."]

    def test_a_prompt_without_placeholder_names_the_line(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text(f"{IMAGE_TAG} One.\nTwo.\n")
        with pytest.raises(DataError, match=r"p\.txt, line 2: 0 image placeholder"):
            read_prompts(str(path), "key")

    def test_missing_and_empty_files_name_the_key(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"model\.prompt_path: prompt file .* does not exist"):
            read_prompts(str(tmp_path / "no.txt"), "model.prompt_path")
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(ConfigError, match=r"model\.prompt_path: .* holds no prompt"):
            read_prompts(str(tmp_path / "empty.txt"), "model.prompt_path")

    def test_the_shipped_prompts(self) -> None:
        prompts = read_prompts(str(PROJECT / "prompts" / "alignment.txt"), "key")
        assert len(prompts) == 4
        assert any(prompt.endswith(" Describe this image in detail.") for prompt in prompts)
        assert any("Take a look at this image and describe what you notice." in prompt for prompt in prompts)
