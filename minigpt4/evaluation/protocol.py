"""What a score was measured on and how: without it, two scores cannot be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from minigpt4.common.errors import counted
from minigpt4.evaluation.java import TOKENIZER


def references_sha256(references: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of image ids and references; the order of the images does not matter, that of captions does."""
    ordered = sorted((str(key), list(captions)) for key, captions in references.items())
    text = json.dumps(ordered, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """How predictions were made and scored.

    Attributes:
        dataset: name of the dataset or path of the references.
        split: the split scored, None where the references name none.
        images: number of images scored.
        references: number of reference captions of all images.
        references_per_image: fewest and most references of one image.
        references_sha256: hash of ids and references; equal only where the same images were scored against the same
            captions.
        metrics: names of the metrics.
        tokenizer: tokenizer of the captions.
        scorer: package and version of the metrics.
        prompt: the instruction as the model saw it, None where unknown.
        generation: generation settings, e.g. num_beams and max_new_tokens.
        selection: which part of the split was scored, e.g. {"limit": 100}; empty for all of it.
        notes: anything else that a reader of the scores must know.
        task: what was asked where it is not captions: vqa, refer or detection; `images` then counts questions.
    """

    dataset: str
    split: str | None
    images: int
    references: int
    references_per_image: tuple[int, int]
    references_sha256: str
    metrics: tuple[str, ...]
    tokenizer: str = TOKENIZER
    scorer: str = ""
    prompt: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    task: str = ""

    @classmethod
    def of(
        cls,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str],
        *,
        dataset: str,
        split: str | None = None,
        prompt: str | None = None,
        generation: Mapping[str, Any] | None = None,
        selection: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        task: str = "",
    ) -> Protocol:
        """The protocol of scoring these references, with the counts and the hash taken from them."""
        counts = [len(captions) for captions in references.values()]
        return cls(
            dataset=dataset,
            split=split,
            images=len(counts),
            references=sum(counts),
            references_per_image=(min(counts, default=0), max(counts, default=0)),
            references_sha256=references_sha256(references),
            metrics=tuple(metrics),
            tokenizer="" if task else TOKENIZER,
            scorer=_version("pycocotools") if task == "detection" else "" if task else _version("pycocoevalcap"),
            prompt=prompt,
            generation=dict(generation or {}),
            selection=dict(selection or {}),
            notes=dict(notes or {}),
            task=task,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; empty and unknown values are left out."""
        plain = asdict(self)
        return {key: value for key, value in plain.items() if value not in (None, {}, "")}

    def differences(self, made: Mapping[str, Any]) -> list[str]:
        """What another protocol has otherwise ("split: was test, is val"); empty where scores can be compared.

        Of the notes, only the frozen weights count.

        Args:
            made: the other protocol, as read from JSON; further entries do not matter.
        """
        now, before = _comparable(json.loads(json.dumps(self.to_dict()))), _comparable(made)
        return [
            f"{key}: was {before.get(key)}, is {now.get(key)}"
            for key in dict.fromkeys([*now, *before])
            if now.get(key) != before.get(key)
        ]

    @property
    def unit(self) -> str:
        """What is counted and averaged over: images, or questions."""
        return "questions" if self.task else "images"

    @property
    def references_each(self) -> str:
        """How many references an image has, in words."""
        low, high = self.references_per_image
        return f"{counted(low, 'references') if low == high else f'{low} to {high} references'} each"

    def summary(self) -> str:
        """One line for a table's caption."""
        where = f"{self.dataset}, split {self.split}" if self.split else self.dataset
        part = ", ".join(f"{key} {value}" for key, value in self.selection.items())
        return (
            f"{where}{f' ({part})' if part else ''}: {counted(self.images, self.unit)}, {self.references_each}, "
            f"references {self.references_sha256[:12]}"
        )


def _comparable(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol's entries that two comparable scores share, with those of its sections named like generation.top_p."""
    notes = plain.get("notes")
    chosen: dict[str, Any] = {item.name: plain.get(item.name) for item in fields(Protocol) if item.name != "notes"}
    chosen["frozen_weights"] = notes.get("frozen_weights") if isinstance(notes, Mapping) else None
    found: dict[str, Any] = {}
    for key, value in chosen.items():
        found |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
