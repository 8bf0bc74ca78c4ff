"""Records -> encoded samples: the dataset for a picture, an instruction and an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from torch import Tensor
from torch.utils.data import Dataset

from minigpt4.common.errors import DataError
from minigpt4.common.schema import Target
from minigpt4.common.types import Record, Sample
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import with_image_tag
from minigpt4.datasets.feature_cache import FeatureCache
from minigpt4.datasets.sampler import FullShuffle, Order

MAX_SUBSTITUTES = 10
"""Unreadable pictures in a row after which the image folder itself must be wrong."""


class InstructionDataset(Dataset[Sample]):
    """Pictures with an instruction and an answer.

    What is random in a sample (prompt, caption, the stand-in for a broken picture) is drawn from a generator named
    after the seed, the pass through the data and the index, so it depends on nothing else.

    Args:
        name: The dataset's key in the configuration, for messages.
        records: What was read from the annotations.
        images: Folder that relative image paths start at.
        image_processor: image (a path, or the bytes of a file and its name) -> (3, S, S).
        text_processor: Applied to the caption that was drawn.
        prompts: Instructions for records without a question, each with its image placeholder.
        encoder: Lays out and tokenises prompt and answer.
        target: What a record with several answers trains on.
        answer: Template of the text to learn; `{answer}` marks the processed caption.
        sample_ratio: weight among the datasets trained on together.
        seed: Part of every generator's name.
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
        self.encoder = encoder
        self.target = target
        self.answer = answer
        self.sample_ratio = sample_ratio
        self.seed = seed
        self.feature_cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The sample as validation sees it, the same each time."""
        return self.sample(index, draw=0)

    def order(self) -> Order:
        """In what order training goes through the records."""
        return FullShuffle(f"{self.seed}-{self.name}", len(self))

    def identity(self) -> str:
        """What is trained on, records and prompts, without pictures or paths: their number and a digest."""
        digest = hashlib.sha256(repr(list(self.prompts)).encode())
        for record in self.records:
            digest.update(repr((record.image_id, record.question, record.answers)).encode())
        return f"{len(self)} records, {digest.hexdigest()[:16]}"

    def image_path(self, index: int) -> Path:
        """Where the picture of a record lies."""
        return self.images / self.records[index].image

    def open(self, index: int) -> Tensor:
        """The picture of a record, (3, S, S), uint8 until `normalise` or as a processor of the user's own prepares it;
        with a feature cache, its features, (Q, width).

        Raises:
            DataError: It is missing or broken; the message names the picture and the annotation's row.
        """
        try:
            if self.feature_cache is not None:
                return self.feature_cache.get(self.records[index].image)
            return self.image_processor(self.image_path(index))
        except DataError as error:
            raise DataError(f"{self.records[index].source}: {error}") from error

    def sample(self, index: int, draw: int) -> Sample:
        """The record's sample in one pass through the data.

        A picture that cannot be read is replaced by another record of the same dataset, and `Sample.skipped` says so.

        Args:
            index: Of the record.
            draw: Number of the pass, from 0.

        Raises:
            DataError: Ten pictures in a row cannot be read, or the prompt does not fit its picture or the context.
        """
        chosen, image, skipped = self._first_readable(index, draw)
        record = self.records[chosen]
        instruction, answer = self._texts(chosen, draw)
        return Sample(
            image_id=record.image_id,
            images=(image,),
            encoded=self.encoder.encode_example(instruction, answer, source=record.source),
            instruction=instruction,
            answer=answer,
            skipped=skipped,
        )

    def text_length(self, index: int, draw: int) -> int:
        """Characters of what `sample` draws for a record, its picture not counted."""
        return sum(map(len, self._texts(index, draw)))

    def _first_readable(self, index: int, draw: int) -> tuple[int, Tensor, tuple[str, ...]]:
        chosen = index
        skipped: list[str] = []
        for substitute in range(MAX_SUBSTITUTES):
            try:
                return chosen, self.open(chosen), tuple(skipped)
            except DataError as error:
                skipped.append(str(error))
                generator = Random(f"{self.seed}-{draw}-{index}-substitute-{substitute}")
                chosen = generator.randrange(len(self.records))
        raise DataError(
            f"dataset {self.name}: {MAX_SUBSTITUTES} pictures in a row cannot be read, so {self._remedy(skipped[0])}"
        )

    def _remedy(self, reason: str) -> str:
        return (
            f"the image folder {self.images} looks wrong ({reason}); set it by --options datasets.{self.name}."
            "images=DIR or the environment variable MINIGPT4_DATA"
        )

    def _texts(self, index: int, draw: int) -> tuple[str, str]:
        """Instruction and answer of a record in one pass."""
        record, generator = self.records[index], Random(f"{self.seed}-{draw}-{index}")
        asked = record.question
        instruction = generator.choice(self.prompts) if asked is None else with_image_tag(asked)
        caption = " ".join(record.answers) if self.target is Target.joined else generator.choice(record.answers)
        return instruction, self.answer.replace("{answer}", self.text_processor(caption))
