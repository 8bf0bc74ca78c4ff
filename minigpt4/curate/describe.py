"""Images drawn at random -> descriptions by the stage-1 model."""

from __future__ import annotations

import io
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from minigpt4.common.distributed import start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import remove_temporary_files, write_atomically, writing
from minigpt4.common.logging import Progress
from minigpt4.common.registry import processors
from minigpt4.common.schema import Config, DescribeConfig, GenerationConfig
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import read_prompts
from minigpt4.curate.ledger import Event, Ledger, SampleState
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.shards.dataset import ShardDataset
from minigpt4.models.loading import build_model, build_prompt_encoder, choose_precision
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.toy import NOTE, is_toy
from minigpt4.processors.image import open_image, stack_images

logger = logging.getLogger(__name__)
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_QUALITY = 95


def describe(cfg: Config, ledger: Ledger, images: Path) -> None:
    """Draw `curation.images` samples, and describe those that have no description yet.

    Args:
        cfg: configuration; `model.ckpt` is the stage-1 projection.
        ledger: events so far, and where the draw and the descriptions are appended.
        images: folder where the images are kept, as {sample}.jpg.

    Raises:
        MiniGPT4Error: A path, dataset, checkpoint or setting cannot be used.
    """
    curation, settings = cfg.curation, cfg.curation.describe
    datasets = build_datasets(
        cfg.datasets,
        cfg.model,
        build_prompt_encoder(cfg.model),
        [curation.split],
        seed=cfg.run.seed,
        train=False,
        prepared=prepare_datasets(cfg.datasets),
    )
    remove_temporary_files(images, "*.jpg")
    known = ledger.states()
    ledger.append(event for event in draw(datasets, curation.images, curation.seed) if event["sample"] not in known)
    states = list(ledger.states().values())
    groups = [states[start : start + settings.batch_size] for start in range(0, len(states), settings.batch_size)]
    waiting = [(number, group) for number, group in enumerate(groups) if not all(state.texts for state in group)]
    if not waiting:
        logger.info("every sample has its description")
        return
    device = start_processes(cfg.run.device).device
    model = build_model(cfg.model, device, choose_precision(cfg.model, device).frozen)
    if is_toy(model.base):
        logger.warning(NOTE)
    describer = Describer(settings, model, image_size=cfg.model.image_size, seed=curation.seed)
    with Progress("descriptions", sum(len(group) for _, group in waiting), "images") as progress:
        for number, group in waiting:
            readable, failures = _save_images(group, datasets, images)
            described = {state.sample for state in group if state.texts}
            # All of the group is described again: what is sampled for an image depends on its batch.
            events = [*failures, *describer.describe(readable, images, number)]
            ledger.append(event for event in events if event["sample"] not in described)
            progress.advance(len(group))


def draw(datasets: Mapping[str, InstructionDataset], count: int, seed: int) -> list[Event]:
    """Draw images at random, each at most once; a larger `count` only adds to the draw.

    Args:
        datasets: datasets by name; together, each image has the same chance.
        count: images to draw.
        seed: part of the name of the random generator.

    Raises:
        ConfigError: There are fewer images.
        DataError: A sample's name cannot be read.
    """
    *starts, total = accumulate((len(dataset) for dataset in datasets.values()), initial=0)
    if count > total:
        raise ConfigError(f"curation.images: {count} should be at most {total:,}, the number of images in the datasets")
    generator = Random(f"{seed}-curation")
    places: dict[int, None] = {}  # in the order of the draw
    while len(places) < count:
        places.setdefault(generator.randrange(total))
    names, events = list(datasets), list[Event]()
    for number, place in enumerate(places):
        dataset = bisect_right(starts, place) - 1
        name, index = names[dataset], place - starts[dataset]
        image = datasets[name].records[index].image_id
        events.append({"sample": str(number), "step": "draw", "dataset": name, "index": index, "name": image})
    return events


class Describer:
    """Describes batches of images; what is sampled for a batch depends on its number, not on the batches before it.

    Args:
        settings: prompts, lengths and number of descriptions.
        model: model with the stage-1 projection.
        image_size: side of the model's images in pixels.
        seed: part of the names of all random generators.

    Raises:
        ConfigError: The prompt file is missing or empty.
        DataError: The prompt has no image placeholder.
    """

    def __init__(self, settings: DescribeConfig, model: MiniGPT4, *, image_size: int, seed: int) -> None:
        self.settings = settings
        self.model = model
        self.processor = processors.get("blip2_image_eval")(image_size)
        self.seed = seed
        self.prompt = read_prompts(settings.prompt_path or "", "curation.describe.prompt_path")[0]

    def describe(self, group: Sequence[SampleState], images: Path, number: int) -> Iterator[Event]:
        """The events of a batch's descriptions.

        Args:
            group: samples of the batch.
            images: folder of {sample}.jpg.
            number: number of the batch, part of the names of its random generators.
        """
        if not group:
            return
        pixels = stack_images([self.processor(images / f"{state.sample}.jpg") for state in group])
        queries = self.model.encode_queries(pixels.to(self.model.device))
        dialogues = self._new_dialogues(len(group))
        main = self._main_descriptions(dialogues, queries, number)
        sampled = replace(self.settings.generation, do_sample=True)
        others = [
            self._ask(self._new_dialogues(len(group)), self.prompt, queries, sampled, f"{number}-{sample}")
            for sample in range(1, self.settings.samples)
        ]
        for row, state in enumerate(group):
            texts = [main[row], *(answers[row] for answers in others)]
            continued = len(dialogues[row].turns) - 1
            yield {"sample": state.sample, "step": "describe", "texts": texts, "continued": continued}

    def _new_dialogues(self, count: int) -> list[Dialogue]:
        return [Dialogue(self.model.encoder.template) for _ in range(count)]

    def _main_descriptions(self, dialogues: Sequence[Dialogue], queries: Tensor, number: int) -> list[str]:
        """Descriptions by `generation`, continued where they are short.

        Args:
            dialogues: new dialogues, which are filled.
            queries: Q-Former outputs, (B, Q, width).
            number: number of the batch.
        """
        settings, tokenizer = self.settings, self.model.encoder.tokenizer
        rows = list(range(len(dialogues)))
        for turn in range(1 + settings.max_continues):
            question = settings.continue_prompt if turn else self.prompt
            short = [dialogues[row] for row in rows]
            self._ask(short, question, queries[rows], settings.generation, f"{number}-turn-{turn}")
            rows = [row for row in rows if len(tokenizer.encode(_joined(dialogues[row]))) < settings.min_tokens]
            if not rows:
                break
        return [_joined(dialogue) for dialogue in dialogues]

    def _ask(
        self, dialogues: Sequence[Dialogue], question: str, queries: Tensor, generation: GenerationConfig, name: str
    ) -> list[str]:
        """The answers of one more turn of each dialogue; what is sampled depends on the seed and `name` alone."""
        encoder = self.model.encoder
        # The image comes with the first question.
        prompts = [
            encoder.encode_rendered(dialogue.prompt(question, images=not dialogue.turns), source="description")
            for dialogue in dialogues
        ]
        with torch.random.fork_rng():
            torch.manual_seed(Random(f"{self.seed}-describe-{name}").getrandbits(63))
            answers = [answer.text for answer in self.model.generate(prompts, generation, queries=queries)]
        for dialogue, answer in zip(dialogues, answers, strict=True):
            dialogue.turns.append(Turn(question, images=not dialogue.turns, answer=answer))
        return answers


def _joined(dialogue: Dialogue) -> str:
    return " ".join(turn.answer for turn in dialogue.turns if turn.answer)


def _save_images(
    group: Sequence[SampleState], datasets: Mapping[str, InstructionDataset], images: Path
) -> tuple[list[SampleState], list[Event]]:
    """Save the images that are not saved yet: the samples with an image, and the events of unreadable images.

    Raises:
        DataError: An image cannot be written.
    """
    readable, failures = [], []
    for state in group:
        path = images / f"{state.sample}.jpg"
        if not path.is_file():
            try:
                content = _jpeg_of(state.drawn, datasets)
            except DataError as error:
                failures.append({"sample": state.sample, "step": "describe", "error": str(error)})
                continue
            with writing(path):
                write_atomically(path, partial(Path.write_bytes, data=content))
        readable.append(state)
    return readable, failures


def _jpeg_of(drawn: Event, datasets: Mapping[str, InstructionDataset]) -> bytes:
    """The image of a sample as a JPEG file; one that is JPEG already is returned unchanged.

    Raises:
        DataError: It cannot be read or decoded, or the dataset has changed since it was drawn.
    """
    content = _read_image(drawn, datasets)
    image = open_image(content, drawn["name"])
    if content.startswith(JPEG_SIGNATURE):
        return content
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _read_image(drawn: Event, datasets: Mapping[str, InstructionDataset]) -> bytes:
    """The image file of a sample.

    Raises:
        DataError: It cannot be read, or the dataset has changed since it was drawn.
    """
    dataset, index = datasets.get(drawn["dataset"]), drawn["index"]
    if dataset is None or index >= len(dataset) or dataset.records[index].image_id != drawn["name"]:
        raise DataError(
            f"sample {drawn['sample']} was drawn as {drawn['name']}, number {index} of dataset '{drawn['dataset']}', "
            "which is another image now; restore the data, or set curation.dir to a new folder"
        )
    if isinstance(dataset, ShardDataset):
        return dataset.records.sample(index).image
    try:
        return dataset.image_path(index).read_bytes()
    except OSError as error:
        raise DataError(f"image {dataset.image_path(index)} cannot be read: {error.strerror}") from error
