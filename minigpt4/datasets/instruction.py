"""Records -> encoded samples: the dataset of images, each with an instruction and an answer, or a conversation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from torch import Tensor
from torch.utils.data import Dataset

from minigpt4.common.errors import DataError, RemoteDataError
from minigpt4.common.files import DATA_VARIABLE
from minigpt4.common.schema import Target
from minigpt4.common.types import Encoded, Record, Sample
from minigpt4.conversation.template import PromptEncoder, PromptPool, place_images
from minigpt4.datasets.feature_cache import FeatureCache
from minigpt4.datasets.sampler import FullShuffle, Order

MAX_SUBSTITUTES = 10
"""Unreadable images in a row after which the image folder itself must be wrong."""


class InstructionDataset(Dataset[Sample]):
    """Images, each with an instruction and an answer.

    The random parts of a sample (prompt, caption, the substitute for an unreadable image) are drawn from a generator
    named by seed, epoch and index, and depend on nothing else.

    Args:
        name: key of the dataset in the configuration, for messages.
        records: what was read from the annotations.
        images: folder that relative image paths start at.
        image_processor: image (a path, or the bytes of a file and its name) -> (3, S, S).
        text_processor: applied to the caption that was drawn.
        prompts: instructions for records without a question, each with its image placeholder, and prompts around
            questions.
        encoder: encodes prompt and answer.
        target: what a record with several answers trains on.
        answer: template of the text to train on; `{answer}` marks the processed caption.
        sample_ratio: weight among the datasets trained on together.
        seed: part of every generator's name.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[Record],
        *,
        images: Path,
        image_processor: Callable[..., Tensor],
        text_processor: Callable[[str], str],
        prompts: Sequence[str],
        encoder: PromptEncoder,
        target: Target = Target.one,
        answer: str = "{answer}",
        sample_ratio: float = 1.0,
        seed: int = 42,
    ) -> None:
        self.name = name
        self.records = records
        self.images = images
        self.image_processor = image_processor
        self.text_processor = text_processor
        self.prompts = prompts
        self.pool = PromptPool(prompts)
        self.encoder = encoder
        self.target = target
        self.answer = answer
        self.sample_ratio = sample_ratio
        self.seed = seed
        self.feature_cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The sample used in validation, the same each time."""
        return self.sample(index, epoch=0)

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample of a record in one epoch.

        An image that cannot be read is replaced by another record of the same dataset, and `Sample.skipped` says so.

        Args:
            index: index of the record.
            epoch: number of the pass through this dataset, from 0.

        Raises:
            DataError: Ten images in a row cannot be read, or the prompt does not fit its image or the context.
            RemoteDataError: A shard elsewhere cannot be reached.
        """
        chosen, images, skipped = self._first_readable(index, epoch)
        instruction, answer = self._turns(chosen, epoch)[-1]
        return Sample(
            image_id=self.records[chosen].image_id,
            images=images,
            encoded=self.encoded(chosen, epoch),
            instruction=instruction,
            answer=answer,
            skipped=skipped,
        )

    def encoded(self, index: int, epoch: int) -> Encoded:
        """The tokens of a record's sample in one epoch; no image is opened."""
        *earlier, (instruction, answer) = self._turns(index, epoch)
        record = self.records[index]
        return self.encoder.encode_example(instruction, answer, len(record.images), record.source, earlier)

    def open(self, index: int) -> tuple[Tensor, ...]:
        """All images of a record; errors as for `open_image`."""
        return tuple(self.open_image(index, number) for number in range(len(self.records[index].images)))

    def open_image(self, index: int, number: int = 0) -> Tensor:
        """One image of a record, (3, S, S) as the processor returns it; with a feature cache, its features, (Q, width).

        Raises:
            DataError: It is missing or broken; the message names the image and the annotation's row.
        """
        record = self.records[index]
        try:
            if self.feature_cache is not None:
                return self.feature_cache.get(record.images[number])
            return self.image_processor(self.images / record.images[number])
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error

    def image_path(self, index: int) -> Path:
        """The path of a record's first image."""
        return self.images / self.records[index].image

    def answer_text(self, answer: str) -> str:
        """An answer as it is trained on."""
        return self.answer.replace("{answer}", self.text_processor(answer))

    def text_length(self, index: int, epoch: int) -> int:
        """Characters of the questions and answers that `sample` draws."""
        return sum(len(text) for turn in self._turns(index, epoch) for text in turn)

    def order(self) -> Order:
        """The order of the records in each epoch of training."""
        return FullShuffle(f"{self.seed}-{self.name}", len(self))

    def identity(self) -> str:
        """The number of records and a digest of prompts and of what is trained on in the records, images excluded."""
        digest = hashlib.sha256(repr(list(self.prompts)).encode())
        for record in self.records:
            digest.update(repr((record.image_id, record.question, record.answers)).encode())
            if record.earlier or len(record.images) != 1:  # a record of one turn and image has its digest of old
                digest.update(repr((record.earlier, len(record.images))).encode())
        return f"{len(self)} records, {digest.hexdigest()[:16]}"

    def _first_readable(self, index: int, epoch: int) -> tuple[int, tuple[Tensor, ...], tuple[str, ...]]:
        """(index, images, why each substituted image cannot be read)."""
        chosen = index
        skipped: list[str] = []
        for substitute in range(MAX_SUBSTITUTES):
            try:
                return chosen, self.open(chosen), tuple(skipped)
            except RemoteDataError:
                raise
            except DataError as error:
                skipped.append(str(error))
                generator = Random(f"{self.seed}-{epoch}-{index}-substitute-{substitute}")
                chosen = generator.randrange(len(self.records))
        raise DataError(
            f"dataset {self.name}: {MAX_SUBSTITUTES} images in a row cannot be read, so {self._remedy(skipped[0])}"
        )

    def _remedy(self, reason: str) -> str:
        return (
            f"the image folder {self.images} looks wrong ({reason}); set it by --options datasets.{self.name}."
            f"images=DIR or the environment variable {DATA_VARIABLE}"
        )

    def _turns(self, index: int, epoch: int) -> list[tuple[str, str]]:
        """The questions, with placeholders of their images, and answers of a record in one epoch."""
        record, generator = self.records[index], Random(f"{self.seed}-{epoch}-{index}")
        questions = self.pool.questions(record, generator.choice)
        last = " ".join(record.answers) if self.target is Target.joined else generator.choice(record.answers)
        answers = [*(answer for _, answer in record.earlier), last]
        processed = map(self.answer_text, answers)
        return list(zip(place_images(questions, len(record.images), record.source), processed, strict=True))
