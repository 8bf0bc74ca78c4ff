"""Damaged files of every kind that the project reads: refused in one line, or read as far as anybody could."""

from __future__ import annotations

import json
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from minigpt4.common.checkpoint import read_checkpoint, read_projection
from minigpt4.common.config import load_config
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.files import CONFIGS, PROJECT, asset
from minigpt4.common.schema import DatasetConfig, LowResource, ModelConfig
from minigpt4.conversation.template import own_template, read_prompts
from minigpt4.conversation.tokenizer import load_tokenizer
from minigpt4.curate.ledger import Ledger
from minigpt4.datasets.builders import read_rows
from minigpt4.datasets.feature_cache import FeatureCache, check_identity, write_shard
from minigpt4.datasets.flickr30k_prepare import read_records
from minigpt4.datasets.shards.dataset import ShardRecords
from minigpt4.datasets.shards.index import FOLDER, open_index
from minigpt4.evaluation.predictions import Prediction, load_predictions, read_references, save_predictions
from minigpt4.generate import AnswerFile, Question, questions_of_jsonl, row_of
from minigpt4.models.llm import build_llm
from minigpt4.models.loading import build_image_encoders
from minigpt4.processors.image import decode_image
from minigpt4.runners.checkpoints import latest_valid_checkpoint, save
from minigpt4.scenes.files import ANNOTATIONS_NAME, SCENES_NAME, write_scenes, write_shards
from minigpt4.scenes.truth import load_scenes
from tests.faults.damage import damaged
from tests.faults.outcomes import Outcome, Tally
from tests.processors.damaged import KINDS as IMAGE_KINDS
from tests.processors.damaged import saved
from tests.runners.project import assert_same

TIME_LIMIT = 60
"""Seconds after which reading a file of some kilobytes is taken for hung, also on a busy machine."""
CAPTIONS = ["a dog, and a cat", "zwei Katzen \u2603", "\U0001f600 three"]


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        name: name in the table.
        file: the file that is damaged, in its folder.
        write: fills an empty folder.
        read: what is read from the folder, as plain values.
        guarded: whether its content has a checksum, or can be made again: it is refused, or read as it was.
    """

    name: str
    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    guarded: bool = False


class HungError(Exception):
    """Reading took too long."""


def damage_files(folder: Path, count: int, seed: int, subjects: Sequence[Subject] | None = None) -> Iterator[Tally]:
    """Damage files of every kind, `count` in all."""
    listed = SUBJECTS if subjects is None else subjects
    for number, subject in enumerate(listed):
        share = count * (number + 1) // len(listed) - count * number // len(listed)
        yield damage_file(folder / str(number), subject, share, seed)


def damage_file(folder: Path, subject: Subject, count: int, seed: int) -> Tally:
    """Read a file damaged in `count` ways, each in a copy of its folder."""
    tally = Tally(f"damaged: {subject.name}")
    valid, place = folder / "valid", folder / "damaged"
    valid.mkdir(parents=True)
    subject.write(valid)
    shutil.copytree(valid, place)
    expected = subject.read(place)
    assert expected is not None, subject.name
    for what, content in damaged(subject.name, (valid / subject.file).read_bytes(), count, seed):
        shutil.rmtree(place)
        shutil.copytree(valid, place)
        (place / subject.file).write_bytes(content)
        outcome, problem = _outcome(subject, place, expected)
        tally.add(outcome, f"{what}: {problem}")
    return tally


def _outcome(subject: Subject, place: Path, expected: Any) -> tuple[Outcome, str]:
    try:
        with time_limit():
            found = subject.read(place)
    except MiniGPT4Error as error:
        plain = str(error) and "\n" not in str(error)
        return (Outcome.survived, "") if plain else (Outcome.wrong, f"not one line: {error}")
    except Exception:
        return Outcome.wrong, traceback.format_exc(limit=-4)
    if subject.guarded:
        try:
            assert_same(found, expected)
        except AssertionError as error:
            return Outcome.wrong, f"other content was accepted: {str(error)[:200]}"
    return Outcome.survived, ""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises HungError inside after TIME_LIMIT."""

    def end(number: int, frame: FrameType | None) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Annotations.


def _rows(count: int) -> Iterator[dict[str, object]]:
    for number in range(count):
        yield {
            "image": f"{number}.png",
            "id": number,
            "answer": CAPTIONS[number % 3],
            "split": "val" if number else None,
        }


def _coco() -> dict[str, object]:
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 100.5} for number in range(3)]
    boxes = [{"image_id": number % 3, "category_id": number % 2, "bbox": [1, 2.5, 30, 40]} for number in range(6)]
    return {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]}


def _flickr30k() -> list[dict[str, object]]:
    joined = " ".join(CAPTIONS)
    return [
        {"image_id": f"{n}", "captions": CAPTIONS, "filename": f"{n}.png", "grounded_caption": joined, "split": "test"}
        for n in range(4)
    ]


def _cc_sbu_align() -> dict[str, object]:
    return {"annotations": [{"image_id": str(n), "caption": CAPTIONS[n % 3]} for n in range(8)]}


_CSV = "image,captions,split\n" + "".join(f'{n}.png,"[""one"", ""two, \u00e9""]",train\n' for n in range(8))


def _annotations(name: str, reader: str, file: str, content: str) -> Subject:
    def write(folder: Path) -> None:
        (folder / file).write_text(content, encoding="utf-8")
        if reader in ("folder", "table_triples"):
            (folder / "0.png").write_bytes(saved(_image(), "PNG"))

    def read(folder: Path) -> list[str]:
        whole = reader in ("folder", "table_triples")
        cfg = DatasetConfig(reader=reader, annotations=str(folder if whole else folder / file), val_fraction=0.5)
        found = list(read_rows("mine", cfg))
        assert len(found) <= 2 * len(content)
        return [str(row).encode(errors="replace").decode() for row in found]  # also as it is shown

    return Subject(f"annotations, {name}", file, write, read)


# Shards and their index.


def _write_shard(folder: Path) -> None:
    (shard,) = write_shards(folder / "drawn", scenes=4, per_shard=4, seed=0, size=16)["laion"]
    shard.rename(folder / "a.tar")
    shutil.rmtree(folder / "drawn")


def _write_index(folder: Path) -> None:
    _write_shard(folder)
    _read_shard(folder)
    (rows,) = (folder / FOLDER).glob("*.npy")
    rows.rename(folder / "rows.npy")  # a name that the subject can have; `_read_shard` puts it back
    (folder / "name").write_text(rows.name)


def _read_shard(folder: Path) -> list[object]:
    """Every sample by the index, or why it cannot be read."""
    if (folder / "name").exists():
        (folder / "rows.npy").rename(folder / FOLDER / (folder / "name").read_text())
    index = open_index([folder / "a.tar"], None)
    records = ShardRecords(index)
    found: list[object] = [*index.problems().values()]
    for number in range(len(records)):
        sample = records.sample(number)
        found += [sample.image, sample.record.answers, records[number].image_id]
    return found


# Checkpoints and caches.


def _run_state(step: int) -> dict[str, Any]:
    weight = torch.arange(48.0).reshape(6, 8) + step
    return {
        "model": {"llama_proj.weight": weight, "llama_proj.bias": torch.ones(6)},
        "optimizer": {"state": {0: {"exp_avg": weight / 3}}},
        "scaler": {},
        "config": {"run": {"seed": 3}},
        "epoch": step,
        "step": step,
        "progress": {"best_epoch": None},
        "run": {"data": {"mine": "4 samples"}},
        "metadata": {"prompt_template": "{}", "epoch": str(step)},
    }


def _write_checkpoints(folder: Path) -> None:
    for step in range(2):
        save(folder, f"checkpoint_{step}.pth", _run_state(step))


def _resumed(folder: Path) -> str:
    """Whether a run would be resumed from one of the checkpoints as it was written."""
    found = latest_valid_checkpoint(folder)
    assert found is not None
    content = read_checkpoint(found)
    assert_same(content["model"], _run_state(content["step"])["model"])
    return "one of the two"


def _projection(name: str) -> Callable[[Path], Any]:
    """The weights, and the metadata that is read: a key whose letters have changed is ignored."""

    def read(folder: Path) -> Any:
        weights, metadata = read_projection(folder / name)
        return weights, {key: metadata.get(key) for key in _run_state(1)["metadata"]}

    return read


IDENTITY = {"image_size": "16", "dtype": "float32"}


def _write_cache(folder: Path) -> None:
    check_identity(folder, IDENTITY)
    features = [torch.full((2, 8), float(number), dtype=torch.float16) for number in range(4)]
    write_shard(folder, [f"{number}.png" for number in range(4)], features).rename(folder / "0.safetensors")


def _read_cache(folder: Path) -> list[torch.Tensor]:
    cache = FeatureCache(folder, IDENTITY)
    return [cache.get(f"{number}.png").clone() for number in range(4)]


# Results and ledgers.


def _write_predictions(folder: Path) -> None:
    rows = [Prediction(str(n), CAPTIONS[n % 3], f"{n}.png", tuple(CAPTIONS)) for n in range(4)]
    save_predictions(folder / "predictions.json", rows, {"split": "test", "prompt": "Describe it."})


QUESTIONS = [Question(f"{n}", f"{n}.png", "What is it?") for n in range(4)]


def _write_answers(folder: Path) -> None:
    file = AnswerFile(folder / "answers.jsonl", QUESTIONS)
    with ExitStack() as held:
        file.begin({"model": "tiny"}, held)
    file.append(0, [row_of(question, answer=CAPTIONS[0]) for question in QUESTIONS[:3]])
    file.merge_parts()


def _read_answers(folder: Path) -> Any:
    file = AnswerFile(folder / "answers.jsonl", QUESTIONS)
    with ExitStack() as held:
        file.begin({"model": "tiny"}, held)
        return file.merge_parts()


def _write_ledger(folder: Path) -> None:
    with Ledger(folder / "ledger.jsonl") as ledger:
        for n in range(3):
            sample = {"sample": str(n)}
            ledger.append([sample | {"step": "draw", "dataset": "mine", "index": n, "name": f"{n}.png"}])
            ledger.append([sample | {"step": "describe", "texts": CAPTIONS, "continued": 0}])
            ledger.append([sample | {"step": "refine", "text": CAPTIONS[0], "agreement": 0.5}])
            ledger.append([sample | {"step": "filter", "rule": None, "reason": None, "rules": "x"}])
            ledger.append([sample | {"step": "review", "decision": "accept"}])


def _read_ledger(folder: Path) -> list[str]:
    with Ledger(folder / "ledger.jsonl") as ledger:
        return [repr(state) for state in ledger.states().values()]


# Models.

TINY = load_config(None).config.model


def _copy(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        source = Path(asset(f"tiny/{name}"))
        if source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder)

    return write


def _write_chat_template(folder: Path) -> None:
    _copy("llama")(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    turns = "{% for m in messages %}<{{ m.role }}> {{ m.content }}</s>{% endfor %}"
    settings["chat_template"] = turns + "{% if add_generation_prompt %}<assistant> {% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _read_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("###Human: two red circles ###")
    return ids, tokenizer.decode(ids)


def _read_llm(folder: Path) -> Any:
    llm = build_llm(folder, LowResource.off, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        return llm(torch.tensor([[1, 5, 7]])).logits


def _read_encoders(**files: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        cfg: ModelConfig = replace(TINY, **{key: str(folder / name) for key, name in files.items()})  # type: ignore[arg-type]
        parts = build_image_encoders(cfg, torch.device("cpu"), torch.float32)
        return [dict(part.state_dict()) for part in parts]

    return read


# Configurations, images and the rest.


def _read_settings(folder: Path) -> Any:
    return str(load_config(folder / "run.yaml").config)


def _card(source: Path) -> Subject:
    def write(folder: Path) -> None:
        shutil.copy(source, folder / "card.yaml")

    def read(folder: Path) -> Any:
        (folder / "run.yaml").write_text(yaml.safe_dump({"datasets": {"mine": {"card": str(folder / "card.yaml")}}}))
        return _read_settings(folder)

    return Subject(f"card {source.stem}", "card.yaml", write, read)


def _image() -> Any:
    from PIL import Image

    return Image.linear_gradient("L").resize((48, 48)).convert("RGB")


def _image_file(kind: str) -> Subject:
    image = _image()
    content = saved(image.quantize(16) if kind == "GIF" else image, kind)
    return Subject(
        f"image, {kind}",
        "image",
        lambda folder: (folder / "image").write_bytes(content),  # type: ignore[arg-type, return-value]
        lambda folder: decode_image(folder / "image").sum().item(),
    )


def _text(name: str, file: str, content: str, read: Callable[[Path], Any]) -> Subject:
    def write(folder: Path) -> None:
        (folder / file).write_text(content, encoding="utf-8")

    return Subject(name, file, write, lambda folder: read(folder / file))


def _write_scenes(folder: Path) -> None:
    write_scenes(folder, {"train": 2, "val": 1, "test": 1}, seed=0, size=16)


SETTINGS = [path for name in ("train_configs", "eval_configs") for path in sorted((PROJECT / name).glob("*.yaml"))]
SUBJECTS = (
    _annotations("jsonl", "jsonl", "a.jsonl", "".join(json.dumps(row) + "\n" for row in _rows(8))),
    _annotations("JSON list", "jsonl", "a.json", json.dumps(list(_rows(8)), indent=1, ensure_ascii=False)),
    _annotations("csv", "csv", "a.csv", _CSV),
    _annotations("folder", "folder", "0.txt", "\n".join(CAPTIONS) + "\n"),
    _annotations("flickr30k", "flickr30k", "a.json", json.dumps(_flickr30k(), indent=1)),
    _annotations("cc_sbu_align", "cc_sbu_align", "a.json", json.dumps(_cc_sbu_align(), indent=1)),
    _annotations("coco_boxes", "coco_boxes", "a.json", json.dumps(_coco(), indent=0)),
    _annotations("table_triples", "table_triples", "0.csv", 'year,"sold, net",left\n2023,1,2\n2024,"3 \u20ac",\n'),
    Subject("Flickr30k's table", ANNOTATIONS_NAME, _write_scenes, lambda f: list(read_records(f / ANNOTATIONS_NAME))),
    Subject("drawn scenes", SCENES_NAME, _write_scenes, lambda folder: load_scenes(folder / SCENES_NAME)),
    _text(
        "prompts",
        "prompts.txt",
        "<Img><ImageHere></Img> Describe it.\n<Img><ImageHere></Img> What is it?\n",
        lambda path: read_prompts(str(path), "model.prompt_path"),
    ),
    _text(
        "questions",
        "questions.jsonl",
        "".join(json.dumps(row) + "\n" for row in _rows(8)),
        lambda path: questions_of_jsonl(path, "Describe it."),
    ),
    _text(
        "references, COCO",
        "references.json",
        json.dumps(
            {
                "images": [{"id": n} for n in range(3)],
                "annotations": [{"image_id": n % 3, "caption": CAPTIONS[n % 3]} for n in range(6)],
            },
            indent=1,
        ),
        read_references,
    ),
    _text("references, Flickr30k", "references.json", json.dumps(_flickr30k(), indent=1), read_references),
    Subject("shard", "a.tar", _write_shard, _read_shard),
    Subject("index of shards", f"{FOLDER}/shards.json", _write_index, _read_shard, guarded=True),
    Subject("rows of an index", "rows.npy", _write_index, _read_shard, guarded=True),
    Subject("checkpoint, latest", "checkpoint_1.pth", _write_checkpoints, _resumed, guarded=True),
    Subject(
        "checkpoint, .pth",
        "checkpoint_1.pth",
        _write_checkpoints,
        _projection("checkpoint_1.pth"),
        guarded=True,
    ),
    Subject(
        "checkpoint, .safetensors",
        "checkpoint_1.safetensors",
        _write_checkpoints,
        _projection("checkpoint_1.safetensors"),
        guarded=True,
    ),
    Subject("feature cache", "0.safetensors", _write_cache, _read_cache, guarded=True),
    Subject("identity of a cache", "identity.json", _write_cache, _read_cache, guarded=True),
    Subject("predictions", "predictions.json", _write_predictions, lambda f: load_predictions(f / "predictions.json")),
    Subject("answers", "answers.jsonl", _write_answers, _read_answers),
    Subject("settings of answers", "answers.jsonl.settings.json", _write_answers, _read_answers),
    Subject("ledger", "ledger.jsonl", _write_ledger, _read_ledger),
    Subject(
        "image encoder", "eva_vit.pth", _copy("eva_vit.pth"), _read_encoders(vit_weights="eva_vit.pth"), guarded=True
    ),
    Subject(
        "Q-Former", "qformer.pth", _copy("qformer.pth"), _read_encoders(q_former_model="qformer.pth"), guarded=True
    ),
    Subject("tokenizer.model", "tokenizer.model", _copy("llama"), _read_tokenizer),
    Subject("tokenizer_config.json", "tokenizer_config.json", _copy("llama"), _read_tokenizer),
    Subject("special_tokens_map.json", "special_tokens_map.json", _copy("llama"), _read_tokenizer),
    Subject("chat template", "tokenizer_config.json", _write_chat_template, own_template),
    Subject("language model's config.json", "config.json", _copy("llama"), _read_llm),
    Subject("language model's generation_config.json", "generation_config.json", _copy("llama"), _read_llm),
    Subject("language model's weights", "model.safetensors", _copy("llama"), _read_llm),
    *(
        Subject(
            f"configuration {path.stem}",
            "run.yaml",
            lambda folder, path=path: shutil.copy(path, folder / "run.yaml"),
            _read_settings,
        )  # type: ignore[misc]
        for path in SETTINGS
    ),
    *map(_card, sorted(CONFIGS.glob("datasets/*.yaml"))),
    *map(_image_file, IMAGE_KINDS),
)
