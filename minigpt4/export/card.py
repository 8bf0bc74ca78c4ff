"""The model card of an export (README.md): what it is, how to run it, what it was trained on, how it was verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4 import __version__
from minigpt4.common.errors import ConfigError, counted, first_few
from minigpt4.common.files import read_json
from minigpt4.common.schema import ModelConfig
from minigpt4.common.sources import source_of
from minigpt4.datasets.leaks import METADATA_KEY, TrainingRecord
from minigpt4.models.toy import NOTE, is_toy

if TYPE_CHECKING:
    from minigpt4.export.model_folder import Written
    from minigpt4.export.verify import Check

CARD = "README.md"
METRICS = "metrics.json"
"""What an evaluation leaves in its folder."""
FRONT_MATTER = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [minigpt4, blip-2]
license: other
---"""
"""What the hub reads; the licences differ by part."""
NO_LICENCE = "not recorded: look it up before you pass the weights on"
_PROTOCOL = ("dataset", "split", "images", "references", "prompt", "generation", "selection", "scorer", "tokenizer")
"""Entries of a protocol that the card shows."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation measured of the exported checkpoint.

    Attributes:
        protocol: how, in plain form.
        row: names of the scores -> values.
    """

    protocol: Mapping[str, Any]
    row: Mapping[str, Any]


def find_scores(checkpoint: Path, metrics: Path | None) -> Scores | None:
    """The checkpoint's row of a `metrics.json`; None: there is none.

    Args:
        checkpoint: the checkpoint, as .pth or .safetensors.
        metrics: the file; None: that of the checkpoint's folder or of the one above, if it knows the checkpoint.

    Raises:
        ConfigError: `metrics` was named and does not have this checkpoint.
        DataError: It cannot be read.
    """
    folder = checkpoint.resolve().parent
    near = [folder / METRICS, folder.parent / METRICS]
    for file in [metrics] if metrics else [path for path in near if path.is_file()]:
        content = read_json(file)
        known = content.get("checkpoints") if isinstance(content, dict) else None
        if not isinstance(known, dict):  # other programs call their files so, too
            continue
        same = checkpoint.resolve().with_suffix("")
        paths = {label: Path(str(at["path"])) for label, at in known.items() if isinstance(at, dict) and "path" in at}
        labels = [label for label, path in paths.items() if path.resolve().with_suffix("") == same]
        rows = [row for row in content.get("rows", []) if row.get("checkpoint") in labels] if labels else []
        if rows:
            return Scores(content.get("protocol", {}), {key: rows[0][key] for key in rows[0] if key != "checkpoint"})
    if metrics:
        raise ConfigError(f"--metrics: {metrics} has no scores of {checkpoint}; name the file of its evaluation")
    return None


def model_card(
    cfg: ModelConfig,
    written: Written,
    trained: Mapping[str, str],
    scores: Scores | None,
    checks: Sequence[Check] | None,
) -> str:
    """The card.

    Args:
        cfg: section `model`.
        written: what the folder holds.
        trained: metadata of the checkpoint; empty: it has none.
        scores: from `find_scores`.
        checks: the verification; None: there was none.
    """
    name = f"{cfg.arch} {Path(cfg.model_type).stem}"
    toy = is_toy({key.removeprefix("base."): value for key, value in written.metadata.items()})
    parts = [
        FRONT_MATTER,
        f"# {name}\n\nA MiniGPT-4 model (frozen vision encoder and Q-Former, trained projection"
        + (", trained adapters merged into the language model" if cfg.lora.r else "")
        + ") as transformers' `Blip2ForConditionalGeneration`."
        + (f" {NOTE}" if toy else ""),
        _usage(written),
        _training(cfg, written.metadata, trained),
        _scores(scores),
        _verification(checks),
        _licences(cfg, written.licences, toy=toy),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(written: Written) -> str:
    stop = f", stop_strings=[{json.dumps(written.end)}], tokenizer=processor.tokenizer" if written.leaves_end else ""
    stop += "".join(f", {name}={value!r}" for name, value in written.decoding.items())
    note = (
        f"\n\nAnswers end with `{written.end}`, which is text and no token of its own: a program that stops at tokens "
        "only, as `pipeline` does, leaves it at the end of an answer."
        if written.leaves_end
        else ""
    )
    return f"""## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
content = [{{"type": "image", "path": "a.png"}}, {{"type": "text", "text": "What is this?"}}]
chat = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
).to(model.device, dtype=model.dtype)
generated = model.generate(**inputs{stop})
print(processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

It loads in {written.dtype}, the number format of its language model; `from_pretrained("FOLDER", dtype="float32")`
computes exactly. A conversation needs an image: `Blip2ForConditionalGeneration` answers none without.{note}"""


def _training(cfg: ModelConfig, metadata: Mapping[str, str], trained: Mapping[str, str]) -> str:
    lines = [f"- checkpoint: `{Path(str(cfg.ckpt)).name}`"]
    named = {"epoch": "epoch", "step": "optimizer steps", "val_loss": "validation loss"}
    lines += [f"- {what}: {trained[key]}" for key, what in named.items() if key in trained]
    record = TrainingRecord.from_metadata(trained.get(METADATA_KEY), str(cfg.ckpt))
    if record is None:
        lines.append("- trained on: not recorded in the checkpoint")
    else:
        sets = [f"{each.name} ({', '.join(each.splits)}: {counted(each.count, 'images')})" for each in record.sets]
        lines.append(f"- trained on: {first_few(sets, 20)}")
        if not record.complete:
            lines.append("- what the checkpoint that training started from was trained on is not recorded")
    shown = ("prompt_template", "end_sym", "system", "num_query_token", "lora.r", "lora.alpha", "lora.targets")
    lines += [f"- {key}: `{json.dumps(metadata[key], ensure_ascii=False)}`" for key in shown if metadata.get(key)]
    lines += [f"- {key}: `{value}`" for key, value in sorted(metadata.items()) if key.startswith("base.")]
    return "## Training\n\n" + "\n".join(lines)


def _scores(scores: Scores | None) -> str:
    if scores is None:
        return "## Scores\n\nNone were found beside the checkpoint."
    protocol = [f"- {key}: `{json.dumps(scores.protocol[key])}`" for key in _PROTOCOL if scores.protocol.get(key)]
    header = "| score | value |\n| --- | --- |"
    rows = [f"| {key} | {value:.4f} |" for key, value in scores.row.items() if isinstance(value, int | float)]
    return "\n".join(["## Scores", "", header, *rows, "", "Measured so, before the export:", "", *protocol])


def _verification(checks: Sequence[Check] | None) -> str:
    made = f"Written by MiniGPT-4, rebuilt {__version__}, for transformers {version('transformers')}."
    if checks is None:
        return (
            f"## Verification\n\n**Not verified** (`--no-verify`): this folder was not compared with the model that "
            f"it was made of. {made}"
        )
    rows = [f"| {each.what} | {each.found} | {each.allowed} |" for each in checks]
    return "\n".join(
        [
            "## Verification",
            "",
            f"The folder was loaded by transformers alone and compared with the model that it was made of. {made}",
            "",
            "| | found | allowed |\n| --- | --- | --- |",
            *rows,
        ]
    )


def _licences(cfg: ModelConfig, files: Sequence[str], *, toy: bool) -> str:
    named = {"vision encoder": cfg.vit_weights, "Q-Former": cfg.q_former_model, "language model": cfg.llama_model}
    own, rows = "BSD-3-Clause" if toy else "", []
    for part, path in named.items():
        source = source_of(str(path))
        rows.append(f"| {part} | `{Path(str(path)).name}` | {own or (source and source.licence) or NO_LICENCE} |")
    beside = f" The language model's own: {', '.join(f'`{name}`' for name in files)}." if files else ""
    return "\n".join(
        [
            "## Licences",
            "",
            f"The folder holds the weights of three other models, and each licence goes with it.{beside}",
            "",
            "| part | file | licence |\n| --- | --- | --- |",
            *rows,
        ]
    )
