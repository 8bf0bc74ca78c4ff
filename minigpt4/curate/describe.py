"""Which images are described, and their descriptions by the stage-1 model."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm

from minigpt4.common.distributed import start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import write_atomically
from minigpt4.common.schema import Config, GenerationConfig
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import read_prompts
from minigpt4.curate.ledger import Case, Event, Ledger, cases_of
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.shards.dataset import ShardDataset
from minigpt4.models.loading import build_model, build_prompt_encoder, evaluation_dtype
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import ImageProcessor, open_image, stack_images

logger = logging.getLogger(__name__)
Datasets = Mapping[str, InstructionDataset]
JPEG = b"\xff\xd8\xff"


def open_datasets(cfg: Config, encoder: PromptEncoder) -> Datasets:
    """The datasets to draw from; errors as for `build_datasets`."""
    return build_datasets(
        cfg.datasets,
        cfg.model,
        encoder,
        [cfg.curation.split],
        seed=cfg.run.seed,
        train=False,
        prepared=prepare_datasets(cfg.datasets),
    )


def draw(cfg: Config, datasets: Datasets) -> list[Event]:
    """The draw of every sample; more pictures only add to it.

    Raises:
        ConfigError: More pictures are wanted than there are, or none.
        DataError: A sample's name cannot be read.
    """
    total = sum(len(dataset) for dataset in datasets.values())
    wanted = cfg.curation.images
    if not 1 <= wanted <= total:
        raise ConfigError(f"curation.images: {wanted} should be at least 1 and at most {total:,}, as many as there are")
    return [
        {"sample": str(number), "step": "draw", "dataset": name, "index": index, "name": _name(datasets[name], index)}
        for number, (name, index) in enumerate(_lots(f"{cfg.curation.seed}-curation", wanted, datasets))
    ]


def _lots(seed: str, wanted: int, datasets: Datasets) -> Iterator[tuple[str, int]]:
    """Places in the datasets, each once, in the order of the draw."""
    generator = Random(seed)
    total = sum(len(dataset) for dataset in datasets.values())
    seen: set[int] = set()
    while len(seen) < wanted:
        place = generator.randrange(total)
        if place in seen:
            continue
        seen.add(place)
        for name, dataset in datasets.items():
            if place < len(dataset):
                yield name, place
                break
            place -= len(dataset)


def _name(dataset: InstructionDataset, index: int) -> str:
    return dataset.records[index].image_id


def picture_of(drawn: Event, datasets: Datasets) -> bytes:
    """The picture of a sample, encoded.

    Raises:
        DataError: It cannot be read, or lies elsewhere than when it was drawn.
    """
    dataset, index = datasets.get(drawn["dataset"]), drawn["index"]
    if dataset is None or index >= len(dataset) or _name(dataset, index) != drawn["name"]:
        raise DataError(
            f"sample {drawn['sample']} was drawn as {drawn['name']}, number {index} of dataset '{drawn['dataset']}', "
            "which is another one now; restore the data, or begin a new curation.dir"
        )
    if isinstance(dataset, ShardDataset):
        return dataset.records.sample(index).picture
    try:
        return dataset.image_path(index).read_bytes()
    except OSError as error:
        raise DataError(f"image {dataset.image_path(index)} cannot be read: {error.strerror}") from error


def save_picture(path: Path, picture: bytes, name: str) -> None:
    """Keep a picture as JPEG, whole or not at all; one that is JPEG already stays as it is.

    Raises:
        DataError: It cannot be decoded; the message has its `name`.
    """
    decoded = open_image(io.BytesIO(picture), name)
    if not picture.startswith(JPEG):
        buffer = io.BytesIO()
        decoded.save(buffer, "JPEG", quality=95)
        picture = buffer.getvalue()
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))


def describe(cfg: Config, ledger: Ledger, pictures: Path) -> None:
    """Draw the samples that are wanted, and describe those that have no description yet.

    Args:
        cfg: The configuration; `model.ckpt` is the stage-1 projection.
        ledger: Goes on from where it is.
        pictures: Folder that the pictures are kept in.

    Raises:
        MiniGPT4Error: A path, dataset, checkpoint or setting that cannot be used, or data other than was drawn from.
    """
    settings = cfg.curation.describe
    datasets = open_datasets(cfg, build_prompt_encoder(cfg.model))
    known = cases_of(ledger.events())
    ledger.append(event for event in draw(cfg, datasets) if event["sample"] not in known)
    cases = list(cases_of(ledger.events()).values())
    groups = [cases[start : start + settings.batch_size] for start in range(0, len(cases), settings.batch_size)]
    waiting = [(number, group) for number, group in enumerate(groups) if not all(case.texts for case in group)]
    if not waiting:
        logger.info("every sample has its description")
        return
    describer = Describer(cfg, _build(cfg))
    for number, group in tqdm(waiting, desc="descriptions", unit="group", disable=None):
        readable, unreadable = _keep_pictures(group, datasets, pictures)
        undone = {case.sample for case in group if not case.texts}
        events = [*unreadable, *describer.describe(readable, pictures, number)]
        ledger.append(event for event in events if event["sample"] in undone)


def _build(cfg: Config) -> MiniGPT4:
    device = start_processes(cfg.run.device).device
    return build_model(cfg.model, device, evaluation_dtype(cfg.evaluation.precision, device))


def _keep_pictures(group: Sequence[Case], datasets: Datasets, folder: Path) -> tuple[list[Case], list[Event]]:
    """The samples whose pictures could be read, and the failures of the others."""
    readable, failures = [], []
    for case in group:
        path = folder / f"{case.sample}.jpg"
        try:
            if not path.is_file():
                save_picture(path, picture_of(case.drawn, datasets), case.drawn["name"])
            readable.append(case)
        except DataError as error:
            failures.append({"sample": case.sample, "step": "describe", "error": str(error)})
    return readable, failures


class Describer:
    """Descriptions of groups of pictures; a group with its number gets the same ones, whenever it is described.

    Args:
        cfg: The configuration.
        model: With the stage-1 projection.

    Raises:
        ConfigError: The prompt's file is missing or empty.
        DataError: The prompt has no image placeholder.
    """

    def __init__(self, cfg: Config, model: MiniGPT4) -> None:
        self.settings = cfg.curation.describe
        self.seed = cfg.curation.seed
        self.size = cfg.model.image_size
        self.model = model
        self.prompt = read_prompts(self.settings.prompt_path or "", "curation.describe.prompt_path")[0]

    def describe(self, group: Sequence[Case], pictures: Path, number: int) -> Iterator[Event]:
        """The events of a group's descriptions.

        Args:
            group: Samples whose pictures lie in `pictures`.
            pictures: Folder of {sample}.jpg.
            number: Of the group; names its draws.
        """
        if not group:
            return
        images = [ImageProcessor(self.size)(pictures / f"{case.sample}.jpg") for case in group]
        queries = self.model.encode_queries(stack_images(images).to(self.model.device))
        dialogues = [Dialogue(self.model.encoder.template) for _ in group]
        main = self._continued(dialogues, queries, number)
        drawn = replace(self.settings.generation, do_sample=True)
        others = [
            self._answers(dialogues_of(len(group), self.model), self.prompt, queries, drawn, f"{number}-{sample}")
            for sample in range(1, self.settings.samples)
        ]
        for row, case in enumerate(group):
            texts = [main[row], *(answers[row] for answers in others)]
            turns = len(dialogues[row].turns)
            yield {"sample": case.sample, "step": "describe", "texts": texts, "continued": turns - 1}

    def _continued(self, dialogues: Sequence[Dialogue], queries: Tensor, number: int) -> list[str]:
        """The main descriptions, the short ones continued."""
        settings = self.settings
        rows = list(range(len(dialogues)))
        for turn in range(1 + settings.max_continues):
            asked = settings.continue_prompt if turn else self.prompt
            short, name = [dialogues[row] for row in rows], f"{number}-turn-{turn}"
            self._answers(short, asked, queries[rows], settings.generation, name)
            rows = [row for row in rows if self._tokens(dialogues[row]) < settings.min_tokens]
            if not rows:
                break
        return [_joined(dialogue) for dialogue in dialogues]

    def _answers(
        self, dialogues: Sequence[Dialogue], asked: str, queries: Tensor, generation: GenerationConfig, name: str
    ) -> list[str]:
        """One more turn of each dialogue; what is drawn depends on the seed and this `name` alone."""
        encoder = self.model.encoder
        # The picture comes with the first question.
        prompts = [
            encoder.encode_rendered(dialogue.prompt(asked, images=not dialogue.turns), source="description")
            for dialogue in dialogues
        ]
        with torch.random.fork_rng():
            torch.manual_seed(Random(f"{self.seed}-describe-{name}").getrandbits(63))
            answers = [answer.text for answer in self.model.generate(prompts, generation, queries=queries)]
        for dialogue, answer in zip(dialogues, answers, strict=True):
            dialogue.turns.append(Turn(asked, images=not dialogue.turns, answer=answer))
        return answers

    def _tokens(self, dialogue: Dialogue) -> int:
        return len(self.model.encoder.tokenizer.encode(_joined(dialogue)))


def dialogues_of(count: int, model: MiniGPT4) -> list[Dialogue]:
    """As many new conversations in the model's template."""
    return [Dialogue(model.encoder.template) for _ in range(count)]


def _joined(dialogue: Dialogue) -> str:
    return " ".join(turn.answer for turn in dialogue.turns if turn.answer)
