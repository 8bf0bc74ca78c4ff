"""Five records of each of MiniGPT-v2's datasets, in the layouts that their authors publish, and what they train on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.common.boxes import Box

SIDES = (40, 20)
"""Width and height of every image."""
FIVE = range(1, 6)


@dataclass(frozen=True)
class Expected:
    """What a record becomes.

    Attributes:
        asks: what the question contains; empty: one of the dataset's prompts.
        answers: texts of which one is trained on after the question.
        earlier: questions and answers before it.
        images: images of the record.
        kind: kind of question.
        boxes: its true boxes.
        choices: answers to choose from.
    """

    asks: str
    answers: tuple[str, ...]
    earlier: tuple[tuple[str, str], ...] = ()
    images: int = 1
    kind: str = ""
    boxes: tuple[Box, ...] = ()
    choices: tuple[str, ...] = ()


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def draw(folder: Path, names: Sequence[str]) -> None:
    """An image of each name, all different."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIDES, (10 * number, 100, 50)).save(folder / name)


def coco_2014(number: int, split: str = "train2014") -> str:
    return f"{split}/COCO_{split}_{number:012}.jpg"


def karpathy(data: Path) -> list[Expected]:
    """LAVIS's list: a row for each caption."""
    draw(data / "coco", [coco_2014(number, "val2014") for number in FIVE])
    rows = [
        {"caption": f"{word} {number}.", "image": coco_2014(number, "val2014"), "image_id": f"coco_{number}"}
        for number in FIVE
        for word in ("A dog", "One dog")
    ]
    write_json(data / "coco_caption/coco_karpathy_train.json", rows)
    return [Expected("", (f"A dog {number}.", f"One dog {number}.")) for number in FIVE]


def textcaps(data: Path) -> list[Expected]:
    draw(data / "textcaps/train_images", [f"{number}abc.jpg" for number in FIVE])
    rows = [
        {"image_id": f"{number}abc", "caption_id": number, "set_name": "train", "image_path": f"train/{number}abc.jpg",
         "caption_str": f"A sign says {number}.", "reference_strs": ["not read"]}
        for number in FIVE
    ]  # fmt: skip
    write_json(data / "textcaps/TextCaps_0.1_train.json", {"dataset_type": "train", "data": rows})
    return [Expected("", (f"A sign says {number}.",)) for number in FIVE]


def nocaps(data: Path) -> list[Expected]:
    draw(data / "nocaps/images", [f"{number}.jpg" for number in FIVE])
    images = [{"id": n, "file_name": f"{n}.jpg", "domain": ("near-domain", "in-domain")[n % 2]} for n in FIVE]
    annotations = [{"image_id": n, "id": 10 * n + k, "caption": f"{k} ducks at {n}."} for n in FIVE for k in (0, 1)]
    write_json(data / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    return [
        Expected("", tuple(f"{k} ducks at {n}." for k in (0, 1)), kind=("near-domain", "in-domain")[n % 2])
        for n in FIVE
    ]


def lavis_rows(folder: str, file: str, numbers: Sequence[int] = FIVE, answer: str = "answer") -> Callable[[Path], Any]:
    """LAVIS's list of VQAv2 and its like: ten answers, with repeats."""

    def write(data: Path) -> list[Expected]:
        draw(data / "coco", [coco_2014(number) for number in numbers])
        rows = [
            {"question_id": 100 + number, "question": f"How many at {number}?", "image": coco_2014(number),
             answer: [str(number)] * 7 + ["many"] * 3, "dataset": "vqa"}
            for number in numbers
        ]  # fmt: skip
        write_json(data / folder / file, rows)
        return [Expected(f"How many at {n}?", (*[str(n)] * 7, *["many"] * 3)) for n in numbers]

    return write


def vqav2(data: Path) -> list[Expected]:
    first = lavis_rows("vqav2", "vqa_train.json", range(1, 4))(data)
    return first + lavis_rows("vqav2", "vqa_val.json", range(4, 6))(data)


def aokvqa(data: Path) -> list[Expected]:
    draw(data / "coco", [coco_2014(number) for number in FIVE])
    rows = [
        {"split": "train", "image_id": n, "question_id": f"q{n}", "question": f"What is {n}?", "image": coco_2014(n),
         "choices": ["cat", "dog", "cow", "hen"], "correct_choice_idx": 1, "direct_answers": ["dog", "puppy", "dog"],
         "difficult_direct_answer": n > 3, "rationales": ["It barks."]}
        for n in FIVE
    ]  # fmt: skip
    write_json(data / "aokvqa/aokvqa_v1p0_train.json", rows)
    kinds = ["ordinary"] * 3 + ["difficult"] * 2
    return [Expected(f"What is {n}?", ("dog", "puppy", "dog"), kind=kind) for n, kind in zip(FIVE, kinds, strict=True)]


def gqa(data: Path) -> list[Expected]:
    draw(data / "gqa/images", [f"{number}.jpg" for number in FIVE])
    rows = {
        f"0{n}": {"semantic": [], "question": f"Is {n} red?", "imageId": str(n), "answer": "no", "isBalanced": True,
                  "fullAnswer": f"No, {n} is blue.", "types": {"structural": "verify", "semantic": "attr"}}
        for n in FIVE
    }  # fmt: skip
    write_json(data / "gqa/train_balanced_questions.json", rows)
    return [Expected(f"Is {n} red?", ("no",), kind="verify") for n in FIVE]


def ocrvqa(data: Path) -> list[Expected]:
    draw(data / "ocrvqa/images", ["031.jpg", "032.png"])
    books = {
        "031": {"imageURL": "http://a.org/x.jpg", "split": 1, "title": "Owls", "genre": "Birds",
                "questions": ["Who wrote it?", "What is it?", "Is it a book?"], "answers": ["Ann", "Owls", "Yes"]},
        "032": {"imageURL": "http://a.org/y.png", "split": 1, "questions": ["Title?", "Genre?"],
                "answers": ["Oaks", "Trees"]},
        "033": {"imageURL": "http://a.org/z.jpg", "split": 3, "questions": ["Who?"], "answers": ["Bob"]},
    }  # fmt: skip
    write_json(data / "ocrvqa/dataset.json", books)
    turns = [("Who wrote it?", "Ann"), ("What is it?", "Owls"), ("Is it a book?", "Yes"), ("Title?", "Oaks")]
    return [Expected(question, (answer,)) for question, answer in [*turns, ("Genre?", "Trees")]]


def vizwiz(data: Path) -> list[Expected]:
    """A list without ids; every question is about an image of its own."""
    names = [f"VizWiz_val_{number:08}.jpg" for number in FIVE]
    draw(data / "vizwiz/val", names)
    rows = [
        {"image": name, "question": f"Ok. What is this? {n}", "answer_type": ("other", "unanswerable")[n % 2],
         "answers": [{"answer": text, "answer_confidence": "maybe"} for text in ["can"] * 6 + ["soup can"] * 4],
         "answerable": 1 - n % 2}
        for n, name in zip(FIVE, names, strict=True)
    ]  # fmt: skip
    write_json(data / "vizwiz/val.json", rows)
    given = (*["can"] * 6, *["soup can"] * 4)
    return [Expected(f"Ok. What is this? {n}", given, kind=("other", "unanswerable")[n % 2]) for n in FIVE]


def iconqa(data: Path) -> list[Expected]:
    """Five questions with texts to choose from, amid those of another split and of the other two kinds."""
    choices = ["certain", "unlikely", "impossible"]
    row = {"question": "How likely?", "ques_type": "choose_txt", "split": "train", "choices": choices, "label": "S2"}
    questions = {
        str(20 * n): row | {"question": f"How likely is {n}?", "answer": n % 3, "grade": f"grade{n}"} for n in FIVE
    }
    questions["121"] = row | {"split": "val", "answer": 0, "grade": "prek"}
    questions["122"] = row | {"ques_type": "choose_img", "choices": ["choice_0.png"], "answer": 0, "grade": "prek"}
    questions["123"] = row | {"ques_type": "fill_in_blank", "answer": "7", "grade": "grade2"}
    draw(data / "iconqa_data/iconqa/val/choose_txt", ["121/image.png"])
    draw(data / "iconqa_data/iconqa/train/choose_txt", [f"{20 * n}/image.png" for n in FIVE])
    write_json(data / "iconqa_data/problems.json", questions)
    return [Expected(f"How likely is {n}?", (choices[n % 3],), kind=f"grade{n}", choices=tuple(choices)) for n in FIVE]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def vsr(data: Path) -> list[Expected]:
    relations = ["behind", "touching", "facing", "near", "beyond"]
    kinds = ["Projective", "Topological", "Orientation", "Proximity", "Unallocated"]
    draw(data / "vsr/images", ["000000000001.jpg", "000000000002.jpg"])
    rows = [
        {"image": f"{1 + n % 2:012}.jpg", "image_link": f"http://images.cocodataset.org/train2017/{1 + n % 2:012}.jpg",
         "caption": f"The cat is {relation} the car.", "label": n % 2, "relation": relation, "subj": "cat",
         "obj": "car", "annotator_id": 2, "vote_true_validator_id": "[2]", "vote_false_validator_id": "[]"}
        for n, relation in enumerate(relations)
    ]  # fmt: skip
    write_lines(data / "vsr/test.jsonl", rows)
    return [
        Expected(f"The cat is {relation} the car.", (("false", "true")[n % 2],), kind=kind)
        for n, (relation, kind) in enumerate(zip(relations, kinds, strict=True))
    ]


def hateful_memes(data: Path) -> list[Expected]:
    draw(data / "hateful_memes", [f"img/0{number}.png" for number in FIVE])
    rows = [{"id": n, "img": f"img/0{n}.png", "label": n % 2, "text": f"they'll be {n}"} for n in FIVE]
    write_lines(data / "hateful_memes/dev.jsonl", rows)
    return [Expected(f"they'll be {n}", (("no", "yes")[n % 2],)) for n in FIVE]


def write_refs(folder: Path, file: str, refs: int = 5, split: str = "train") -> list[dict[str, Any]]:
    """A pickle of expressions and its instances.json; reference n has the expressions 2n and 2n + 1."""
    images = [{"id": n, "file_name": coco_2014(n).partition("/")[2], "width": 40, "height": 20} for n in FIVE]
    annotations = [{"id": 50 + n, "image_id": n, "category_id": 1, "bbox": [4 * n, 5, 8, 10]} for n in FIVE]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    write_json(folder / "instances.json", content)
    listed = [
        {"ref_id": n, "ann_id": 50 + n, "image_id": n, "category_id": 1, "file_name": f"COCO_{n}_9.jpg", "split": split,
         "sent_ids": [2 * n, 2 * n + 1],
         "sentences": [{"sent_id": 2 * n + k, "raw": f"{word} dog {n}", "sent": f"{word.lower()} dog {n}",
                        "tokens": [word, "dog"]} for k, word in enumerate(("Left", "That"))]}
        for n in range(1, refs + 1)
    ]  # fmt: skip
    (folder / file).write_bytes(pickle.dumps(listed, protocol=2))
    return listed


def refcoco_box(number: int) -> Box:
    """[4n, 5, 8, 10] in an image of 40 x 20."""
    return Box(4 * number / 40, 0.25, (4 * number + 8) / 40, 0.75)


def refer(folder: str, file: str) -> Callable[[Path], list[Expected]]:
    def write(data: Path) -> list[Expected]:
        draw(data / "coco", [coco_2014(number) for number in FIVE])
        write_refs(data / folder, file)
        return [
            Expected(f"{word} dog {n}", (f"{{<{10 * n}><25><{10 * n + 20}><75>}}",), boxes=(refcoco_box(n),))
            for n in FIVE
            for word in ("Left", "That")
        ]

    return write


def identify(folder: str, file: str) -> Callable[[Path], list[Expected]]:
    def write(data: Path) -> list[Expected]:
        refer(folder, file)(data)
        return [
            Expected(
                f"{{<{10 * n}><25><{10 * n + 20}><75>}}", (f"Left dog {n}", f"That dog {n}"), boxes=(refcoco_box(n),)
            )
            for n in FIVE
        ]

    return write


def visual_genome(data: Path) -> list[Expected]:
    """Five regions to train on; one is large, and one outside of its image."""
    folder = data / "visual_genome"
    draw(folder, ["VG_100K/1.jpg", "VG_100K_2/2.jpg"])
    url = "https://a.edu/people/x/{}"
    images = [
        {"image_id": 1, "width": 400, "height": 200, "url": url.format("VG_100K/1.jpg"), "coco_id": None},
        {"image_id": 2, "width": 40, "height": 20, "url": url.format("VG_100K_2/2.jpg"), "coco_id": 7},
    ]
    write_json(folder / "image_data.json", images)

    def region(number: int, image: int, x: int, y: int, width: int, height: int) -> dict[str, Any]:
        box = {"x": x, "y": y, "width": width, "height": height}
        return {"region_id": number, "image_id": image, "phrase": f"the leaf {number} "} | box

    of_first = [region(1, 1, 40, 20, 80, 100), region(2, 1, -8, 0, 48, 20), region(3, 1, 0, 0, 200, 100)]
    of_second = [region(number, 2, x, 5, 8, 10) for number, x in ((4, 4), (5, 50), (6, 8), (7, 12))]
    regions = [{"id": 1, "regions": of_first}, {"id": 2, "regions": of_second}]
    write_json(folder / "region_descriptions.json", regions)
    boxes = {1: Box(0.1, 0.1, 0.3, 0.6), 2: Box(0, 0, 0.1, 0.1)}
    boxes |= {4: refcoco_box(1), 6: refcoco_box(2), 7: refcoco_box(3)}
    return [Expected(f"the leaf {number}", (box.text,), boxes=(box,)) for number, box in boxes.items()]


def llava(file: str, folder: str = "llava", turns: int = 1) -> Callable[[Path], list[Expected]]:
    def write(data: Path) -> list[Expected]:
        draw(data / "coco", [coco_2014(number) for number in FIVE])
        rows, expected = [], []
        for n in FIVE:
            texts = [text for k in range(turns) for text in (f"Question {k} of {n}?", f"Answer {k} of {n}.")]
            values = [f"{texts[0]}\n<image>" if n % 2 else f"<image>\n{texts[0]}", *texts[1:]]
            said = [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)]
            rows.append({"id": f"{n:012}", "image": f"{n:012}.jpg", "conversations": said})
            pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
            expected.append(Expected(pairs[-1][0], (pairs[-1][1],), pairs[:-1]))
        write_json(data / folder / file, rows)
        return expected

    return write


def unnatural(data: Path) -> list[Expected]:
    rows = [
        {"instruction": "not read", "instances": [
            {"instruction_with_input": f"Add one to {n}.", "input": str(n), "output": f"{n + 1}",
             "constraints": "Answer with a number." if n % 2 else "None."}]}
        for n in FIVE
    ]  # fmt: skip
    write_json(data / "unnatural_instructions/filtered_unnatural_instruction.json", rows)
    return [Expected(f"Add one to {n}." + " Answer with a number." * (n % 2), (f"{n + 1}",), images=0) for n in FIVE]


def grounded(file: str, row: Callable[[int], dict[str, str]]) -> Callable[[Path], list[Expected]]:
    def write(data: Path) -> list[Expected]:
        draw(data / "filtered_flickr/images", [f"{number}.jpg" for number in FIVE])
        rows = [{"image_id": str(number)} | row(number) for number in FIVE]
        write_json(data / "filtered_flickr" / file, rows)
        expected = []
        for number in FIVE:
            texts = row(number)
            box = Box(number / 100, 0.1, 0.5, 0.6, "A man")
            answer = texts.get("grounded_caption") or texts.get("output") or f"<p>A man</p> {texts['bbox']}"
            expected.append(Expected(texts.get("caption", texts.get("phrase", "")), (answer,), boxes=(box,)))
        return expected

    return write


MAN = "<p>A man</p> {{<{}><10><50><60>}}"
CARDS: dict[str, Callable[[Path], list[Expected]]] = {
    "coco_caption": karpathy,
    "textcaps_caption": textcaps,
    "nocaps": nocaps,
    "coco_vqa": vqav2,
    "ok_vqa": lavis_rows("okvqa", "okvqa_train.json"),
    "aok_vqa": aokvqa,
    "gqa": gqa,
    "ocrvqa": ocrvqa,
    "vizwiz": vizwiz,
    "iconvqa": iconqa,
    "vsr": vsr,
    "hateful_memes": hateful_memes,
    "refcoco": refer("refcoco", "refs(unc).p"),
    "refcocop": refer("refcoco+", "refs(unc).p"),
    "refcocog": refer("refcocog", "refs(umd).p"),
    "invrefcoco": identify("refcoco", "refs(unc).p"),
    "invrefcocop": identify("refcoco+", "refs(unc).p"),
    "invrefcocog": identify("refcocog", "refs(umd).p"),
    "refvg": visual_genome,
    "llava_conversation": llava("conversation_58k.json", turns=3),
    "llava_detail": llava("detail_23k.json"),
    "llava_reason": llava("complex_reasoning_77k.json"),
    "multitask_conversation": llava("multi_task_conversation.json", "multitask_conversation", turns=2),
    "unnatural_instruction": unnatural,
    "flickr_grounded_caption": grounded(
        "groundedcaption.json", lambda n: {"grounded_caption": MAN.format(n) + " runs."}
    ),
    "flickr_caption_to_phrase": grounded(
        "captiontobbox.json", lambda n: {"caption": f"A man runs {n}.", "output": MAN.format(n)}
    ),
    "flickr_object_to_phrase": grounded(
        "phrasetobbox.json", lambda n: {"phrase": "A man", "bbox": MAN.format(n).removeprefix("<p>A man</p> ")}
    ),
}
"""Card -> what writes its files below a data folder, and returns what its records become, in order."""
