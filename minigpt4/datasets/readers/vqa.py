"""Questions about images in the published layouts of VQAv2, OK-VQA, A-OKVQA, GQA, OCR-VQA, VizWiz and IconQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import read_json, replace_lone_surrogates
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import (
    Reader,
    RowProblem,
    convert_rows,
    id_of,
    index_rows,
    is_json_list,
    path_of,
    require_object,
    stream_json_list,
    text_of,
    texts_of,
    without_suffix,
)

EXPECTED = (
    '[{"image" or "image_id", "question", "answer", "question_id"}, ...], {"ID": {"imageId", "question", "answer"}}, '
    'or the official {"annotations": [{"question_id", "image_id", "answers"}]} with its file of questions'
)
OCR_SPLITS = {"1": "train", "2": "val", "3": "test"}
"""OCR-VQA's numbers of its splits."""
IMAGES_OF = "images_of"
"""Column that rows of the official layout are given: the folder of COCO's images, which is named for the file."""
TEXT_CHOICE = "choose_txt"
"""IconQA's questions with texts to choose from; the others have images to choose from, or a blank to fill in."""


@readers.register("vqa")
class VqaReader(Reader):
    """A record for each question, named by its id; all answers that people gave are kept, in order and with repeats.

    One of them is drawn in training, so that an answer is learnt as often as it was given.
    """

    choices = False
    """Whether the answer is one of those offered; otherwise what people said without seeing them."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every question of `path`, usable or not; errors as for `Reader.read`."""
        return convert_rows(self._record, _rows(path))

    def _record(self, row: Any, source: str) -> Record:
        require_object(row)
        if row.get("ques_type") == TEXT_CHOICE:
            row = _icon_question(row)
        question, image = text_of(row, "question"), _image(row)
        if question is None:
            raise DataError("no 'question'")
        choices = texts_of(row.get("choices"), "choices") if self.choices else ()
        return Record(
            image_id=_question_id(row, image),
            images=(image,),
            answers=(_right_choice(row, choices),) if self.choices else _answers(row),
            question=question,
            split=text_of(row, "split"),
            source=source,
            kind=_kind(row),
            choices=choices,
        )


@readers.register("vqa_choices")
class VqaChoicesReader(VqaReader):
    """As `vqa`, for questions with answers to choose from (A-OKVQA, IconQA): the right one is the answer."""

    choices = True


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(source, question) each, with the columns of the flat layout."""
    if is_json_list(path):
        return stream_json_list(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: {EXPECTED} is expected")
    if isinstance(content.get("annotations"), list):
        return _official_rows(path, content)
    return _rows_by_id(path, content)


def _official_rows(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The annotations of VQAv2 or OK-VQA joined with their questions, which are in a file of their own."""
    questions_path = path.with_name(
        path.name.replace("mscoco_", "OpenEnded_mscoco_", 1).replace("_annotations", "_questions", 1)
    )
    if questions_path == path or not questions_path.is_file():
        raise DataError(
            f"{path}: its questions should lie beside it, under their official name (that of "
            "v2_mscoco_train2014_annotations.json is v2_OpenEnded_mscoco_train2014_questions.json)"
        )
    questions = read_json(questions_path)
    listed = questions.get("questions") if isinstance(questions, dict) else None
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise DataError(f'{questions_path}: {{"questions": [{{"question_id", "question"}}, ...]}} is expected')
    asked = index_rows(listed, "question_id", questions_path)
    images = content.get("data_subtype")  # train2014, val2014
    if not isinstance(images, str) or not images:
        raise DataError(f"{path}: no 'data_subtype', which names the images' folder, such as train2014")
    for number, row in enumerate(content["annotations"], 1):
        if isinstance(row, dict):
            question = asked.get(id_of(row.get("question_id")), {}).get("question")
            row = row | {"question": question, IMAGES_OF: images, "split": images.rstrip("0123456789")}
        yield f"{path}, annotation {number}", row


def _rows_by_id(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """GQA's questions, those of IconQA with texts to choose from, or OCR-VQA's books with several questions each."""
    for key, row in content.items():
        source = f"{path}, entry {shown(key)}"
        if isinstance(row, dict) and row.get("ques_type", TEXT_CHOICE) != TEXT_CHOICE:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("questions"), list):
            yield source, {"question_id": key} | row if isinstance(row, dict) else row
            continue
        answers, url = row.get("answers"), row.get("imageURL") or ""
        if not isinstance(answers, list) or len(answers) != len(row["questions"]) or not isinstance(url, str):
            expected = "an 'imageURL', and in 'answers' as many as in 'questions', are expected"
            yield source, DataError(f"{expected}, found {shown(url)} and {shown(answers)}")
            continue
        suffix = PurePosixPath(url).suffix or ".jpg"
        of_book = {"image": f"{key}{suffix}", "split": OCR_SPLITS.get(str(row.get("split")))}
        for number, (question, answer) in enumerate(zip(row["questions"], answers, strict=True), 1):
            entry = of_book | {"question_id": f"{key}-{number}", "question": question, "answer": answer}
            yield f"{source}, question {number}", entry


def _icon_question(row: dict[str, Any]) -> dict[str, Any]:
    """A question of IconQA in A-OKVQA's columns; its answer is the number of a choice, its id the image's folder."""
    split, folder, answer = (text_of(row, column) for column in ("split", "question_id", "answer"))
    if split is None or folder is None:
        raise DataError(f"no '{'split' if split is None else 'question_id'}', a part of the image's path")
    choices = texts_of(row.get("choices"), "choices")
    numbers = [str(number) for number in range(len(choices))]
    if answer is None or answer not in numbers:
        raise DataError(f"'answer' should be from 0 to {len(choices) - 1}, found {shown(row.get('answer'))}")
    number = numbers.index(answer)
    image = f"{split}/{TEXT_CHOICE}/{folder}/image.png"
    return row | {"image": image, "correct_choice_idx": number, "direct_answers": [choices[number]]}


def _question_id(row: dict[str, Any], image: str) -> str:
    question_id = text_of(row, "question_id")
    if question_id is None and "answerable" in row:  # VizWiz, which asks once about each image
        question_id = without_suffix(image)
    if question_id is None:
        raise DataError("no 'question_id', by which the prediction is kept")
    return question_id


def _image(row: dict[str, Any]) -> str:
    image = path_of(row, "image")
    if image is not None:
        return image
    if (image := path_of(row, "imageId")) is not None:  # GQA
        return f"{image}.jpg"
    if (image := path_of(row, "image_id")) is not None:
        folder = row.get(IMAGES_OF)  # None for A-OKVQA: COCO's images of 2017
        return f"{folder}/COCO_{folder}_{image.zfill(12)}.jpg" if folder else f"{image.zfill(12)}.jpg"
    raise DataError("no 'image'")


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    """All answers in any of the columns that hold them."""
    for column in ("direct_answers", "answers", "answer"):
        value = row.get(column)
        if value is None:
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = [item.get("answer") for item in value]
        if isinstance(value, list):
            return texts_of(value, column)
        text = text_of(row, column)
        if text is not None:
            return (text,)
    raise DataError("no 'answers', 'answer' or 'direct_answers'")


def _right_choice(row: dict[str, Any], choices: tuple[str, ...]) -> str:
    number = row.get("correct_choice_idx")
    if type(number) is not int or not 0 <= number < len(choices):
        raise DataError(f"'correct_choice_idx' should be from 0 to {len(choices) - 1}, found {shown(number)}")
    return choices[number]


def _kind(row: dict[str, Any]) -> str:
    """What accuracy is broken down by: type of answer, structure of GQA's question, or IconQA's year at school.

    A-OKVQA's questions are ordinary or difficult; its official direct-answer score leaves out the difficult ones.
    """
    if "difficult_direct_answer" in row:
        return "difficult" if row["difficult_direct_answer"] else "ordinary"
    types = row.get("types")
    if isinstance(types, dict):
        return replace_lone_surrogates(str(types.get("structural") or ""))
    return text_of(row, "answer_type") or text_of(row, "grade") or ""
