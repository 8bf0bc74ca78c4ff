from __future__ import annotations

import pytest

from minigpt4.common.errors import DataError
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import IMAGE_TAG, Template
from tests.ascii_tokenizer import AsciiTokenizer

TOKENIZER = AsciiTokenizer()


def make_encoder(queries: int = 2, max_txt_len: int = 160, max_context_len: int = 200) -> PromptEncoder:
    return PromptEncoder(TOKENIZER, Template(pattern="H: {} A: ", end="#"), queries, max_txt_len, max_context_len)


def test_a_prompt_is_bos_text_image_text() -> None:
    ids = make_encoder().prompt(f"{IMAGE_TAG} Go")
    expected = [1, *TOKENIZER.encode("H: <Img>"), *[IMAGE_POSITION] * 2, *TOKENIZER.encode("</Img> Go A: ")]
    assert ids == expected


def test_several_images_are_in_order() -> None:
    ids = make_encoder(queries=3).prompt(f"{IMAGE_TAG}{IMAGE_TAG}", num_images=2)
    assert ids.count(IMAGE_POSITION) == 6
    between = ids[ids.index(IMAGE_POSITION) + 3 :]
    assert TOKENIZER.decode(between[: between.index(IMAGE_POSITION)]) == "</Img><Img>"


def test_the_answer_and_its_end_have_labels() -> None:
    encoder = make_encoder()
    prompt = encoder.prompt(f"{IMAGE_TAG} Go")
    encoded = encoder.encode_example(f"{IMAGE_TAG} Go", "yes")
    answer = TOKENIZER.encode("yes#")
    assert encoded.input_ids == prompt + answer
    assert encoded.labels == [IGNORED_LABEL] * len(prompt) + answer
    assert encoded.num_targets == 4


def test_a_long_answer_is_cut_with_its_end() -> None:
    encoded = make_encoder(max_txt_len=3).encode_example(IMAGE_TAG, "yes and no")
    assert TOKENIZER.decode(encoded.input_ids[-3:]) == "yes"
    assert encoded.num_targets == 3


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(DataError, match=r"^row 7: the prompt has \d+ tokens .* there is room for 20"):
        make_encoder(max_context_len=20).encode_example(f"{IMAGE_TAG} a rather long instruction", "x", source="row 7")


def test_placeholders_and_images_must_agree() -> None:
    with pytest.raises(DataError, match="row 7: 0 image placeholder"):
        make_encoder().encode_example("No image", "x", source="row 7")


def test_labelled_segments_tell_what_is_trained_on() -> None:
    encoder = make_encoder()
    parts = list(encoder.labelled_segments(encoder.encode_example(f"{IMAGE_TAG} Go", "yes")))
    assert parts == [
        ("[BOS]H: <Img>", False), ("<ImageHere>*2", False), ("</Img> Go A: ", False), ("yes#", True),
    ]  # fmt: skip
