from __future__ import annotations

import pytest

from minigpt4.common.errors import DataError
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import IMAGE_TAG, PromptEncoder, Template
from tests.ascii_tokenizer import AsciiTokenizer
from tests.models.parity import Case

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


class TestConversations:
    earlier = ((f"{IMAGE_TAG} What?", "a cat"), ("Big?", "yes"))

    def test_every_answer_is_trained_on_and_nothing_else(self) -> None:
        encoder = make_encoder()
        encoded = encoder.encode_example("Why?", "no", 1, earlier=self.earlier)
        assert encoder.labelled_segments(encoded) == [
            ("[BOS]H: <Img>", False), ("<ImageHere>*2", False), ("</Img> What? A: ", False), ("a cat#", True),
            ("H: Big? A: ", False), ("yes#", True), ("H: Why? A: ", False), ("no#", True),
        ]  # fmt: skip

    def test_an_answer_is_asked_for_as_it_is_trained(self) -> None:
        for pattern, separator in (("H: {} A: ", None), ("#H: {} A: ", None), ("H: {} A: ", "#~")):
            for in_pieces in (False, True):
                encoder = make_encoder()
                encoder.template = Template(pattern, "#", separator=separator, in_pieces=in_pieces)
                encoded = encoder.encode_example("Why?", "no", 1, earlier=self.earlier)
                prompt = encoder.prompt("Why?", earlier=self.earlier)
                assert encoded.input_ids == [*prompt, *TOKENIZER.encode("no#")]

    def test_images_of_later_questions(self) -> None:
        encoder = make_encoder()
        encoded = encoder.encode_example(f"And {IMAGE_TAG}?", "no", 2, earlier=self.earlier)
        assert encoded.input_ids.count(IMAGE_POSITION) == 4
        with pytest.raises(DataError, match="row 7: 2 image placeholder"):
            encoder.encode_example(f"And {IMAGE_TAG}?", "no", 1, "row 7", self.earlier)
        with pytest.raises(DataError, match=r"row 7: the image of a later question .*model\.max_txt_len"):
            make_encoder(max_txt_len=30).encode_example(f"And {IMAGE_TAG}?", "no", 2, "row 7", self.earlier)

    def test_an_answer_that_names_the_placeholder_is_text(self) -> None:
        encoded = make_encoder().encode_example("Why?", "no", 0, earlier=[("What?", "<ImageHere>")])
        assert IMAGE_POSITION not in encoded.input_ids
        assert "<ImageHere>#" in TOKENIZER.decode([label for label in encoded.labels if label >= 0])

    def test_what_follows_the_first_question_is_cut(self) -> None:
        encoder = make_encoder(max_txt_len=10)
        encoded = encoder.encode_example("Why?", "no", 1, earlier=self.earlier)
        assert encoder.labelled_segments(encoded)[-2:] == [("a cat#", True), ("H: B", False)]


def test_minigpt_v2_tokenises_each_turn_alone_in_chat_as_in_training(parity_v: Case) -> None:
    encoder = parity_v.model.encoder
    turns = [("<Img><ImageHere></Img> What is it?", "A dog."), ("Is it raining?", "No.")]
    trained = encoder.encode_example(*turns[1], earlier=turns[:1])
    dialogue = Dialogue(encoder.template, [Turn("What is it?", 1, "A dog.")])
    asked = dialogue.fit("Is it raining?", 0, encoder, 1000)
    assert asked.ids == trained.input_ids[: len(asked.ids)] == encoder.prompt(turns[1][0], earlier=turns[:1])
    assert asked.text == "[INST] <Img><ImageHere></Img> What is it? [/INST]A dog.</s><s>[INST] Is it raining? [/INST]"
    answer = encoder.tokenizer.encode("A dog.</s>")
    assert asked.ids[asked.ids.index(answer[-1]) - len(answer) + 1 :][: len(answer)] == answer
    assert asked.ids.count(encoder.tokenizer.bos_id) == 2
