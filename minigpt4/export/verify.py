"""An exported folder beside the model that it was made of: what each computes from the same images and texts."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt4.common.errors import ExportError, counted, first_few
from minigpt4.common.files import PACKAGE, writing
from minigpt4.common.schema import DESCRIBE, GenerationConfig
from minigpt4.common.types import IMAGE_POSITION, IMAGE_TOKEN
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import IMAGE_TAG, with_image_tag
from minigpt4.export.tokenizer import AWKWARD
from minigpt4.processors.image import ChannelStatistics, is_plain, normalize, open_image

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel
    from minigpt4.export.model_folder import Written

EXAMPLES = tuple(sorted((PACKAGE / "assets" / "examples").glob("*.png")))
"""Images that are compared where none are named."""
SCRIPT = Path(__file__).with_name("reload.py")
MAX_TOKENS = 64
"""Longest answer that is compared, in tokens."""
COMPARED_LOGITS = 4
"""Images whose embeddings and logits are compared."""
SAME_PIXELS = 1e-5
"""Largest difference of pixels that are not resized: rounding in float32."""
RESIZED_LEVELS = (3.0, 0.05)
"""Largest and mean difference of resized pixels, in grey levels: Pillow resizes here what shrinks little or grows."""
RELATIVE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest difference of embeddings and logits as a share of their range, by number format."""


@dataclass(frozen=True)
class Check:
    """A line of the table.

    Attributes:
        what: what was compared.
        found: how far they agree.
        allowed: how far they must.
        passed: whether they do.
    """

    what: str
    found: str
    allowed: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What one side makes of a request.

    Attributes:
        prompts: token ids of each prompt.
        strings: token ids of each text.
        decoded: the texts of these ids, and of those without the last, which may end within a character.
        texts: greedy answers about each image, resized before.
        talks: greedy answers of conversations with several images or turns.
        padded: greedy answers to prompts of different lengths in one batch.
        pipeline: the answer about the first image by a pipeline.
        images: pixels of the images, (N, 3, S, S), normalised.
        exact: pixels of the images that were resized before, (N, 3, S, S).
        embeds: embeddings of the first of these, (K, Q, D).
        logits: logits of a prompt with each of the first, (K, T, vocabulary).
    """

    prompts: list[list[int]]
    strings: list[list[int]]
    decoded: list[str]
    texts: list[str]
    talks: list[str]
    padded: list[str]
    pipeline: list[str]
    images: Tensor
    exact: Tensor
    embeds: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Talk:
    """A conversation that asks for an answer.

    Attributes:
        question: the last question.
        images: images that come with each question, the last one's last.
        turns: earlier questions and answers.
        system: system message; None: the template's own.
    """

    question: str
    images: Sequence[Sequence[Path]]
    turns: Sequence[Turn] = field(default_factory=tuple)
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As transformers takes it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        said: list[dict[str, Any]] = list(system)
        for turn, images in zip([*self.turns, Turn(self.question)], self.images, strict=True):
            parts = [{"type": "image", "path": str(path.absolute())} for path in images]
            said.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
            if turn.answer:
                said.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return said

    def ids(self, loaded: LoadedModel) -> list[int]:
        """Token ids of its prompt, as chat encodes it."""
        encoder = loaded.model.encoder
        template = encoder.template if self.system is None else replace(encoder.template, system=self.system)
        turns = [replace(turn, images=len(images)) for turn, images in zip(self.turns, self.images, strict=False)]
        return (
            Dialogue(template, turns)
            .fit(self.question, len(self.images[-1]), encoder, loaded.model.max_prompt_tokens(loaded.defaults))
            .ids
        )


def compute(
    loaded: LoadedModel, images: Sequence[Path], image_id: int, work: Path, begin_suppress: Sequence[int] = ()
) -> Computed:
    """What the model itself computes, in its number format on its device; the request for the other side is written.

    Answers are about images that were resized before: a file may be resized to other grey levels there, and one level
    decides where two words are nearly equally likely. How files are resized is compared by itself.

    Args:
        loaded: the model.
        images: image files, at least one.
        image_id: token of an image's queries in the export.
        work: folder of the request.
        begin_suppress: tokens that cannot be an answer's first, where the exported folder cannot hold that setting.

    Raises:
        DataError: An image that cannot be used, or a full disk.
    """
    model, encoder = loaded.model, loaded.model.encoder
    assert model.visual_encoder is not None
    side = model.visual_encoder.image_size
    question = loaded.prompt.replace(IMAGE_TAG, "").replace(IMAGE_TOKEN, "").strip() or DESCRIBE
    settings = replace(
        loaded.defaults,
        max_new_tokens=min(MAX_TOKENS, loaded.defaults.max_new_tokens),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        static_cache=False,
    )
    given: Any = asdict(settings)
    files, exact = [], []
    with writing(work):
        for number, path in enumerate(images):
            image = open_image(path)
            exact.append(work / f"exact_{number}.png")
            image.resize((side, side), Image.Resampling.BICUBIC).save(exact[-1])
            files.append(path if is_plain(path) else work / f"decoded_{number}.png")
            if files[-1] is not path:
                image.save(files[-1])
    pixels = normalize(loaded.pixels(exact), model.statistics).float().contiguous()
    ids = encoder.prompt(with_image_tag(question))
    longer = f"{question} {question}"
    talks = _talks(question, exact, one_turn=encoder.template.in_pieces)
    shown = [talk for talk in talks if any(talk.images)]
    asked = [*talks, *(_Talk(text, [[exact[0]]]) for text in AWKWARD)]
    strings = [encoder.tokenizer.encode(text) for text in AWKWARD]

    def as_token(row: Sequence[int]) -> list[int]:
        return [image_id if number == IMAGE_POSITION else number for number in row]

    request = {
        "device": str(model.device),
        "dtype": str(model.token_embedding.weight.dtype).removeprefix("torch."),
        "question": question,
        "images": [str(path.absolute()) for path in files],
        "exact": [str(path.absolute()) for path in exact],
        "prompts": [talk.messages for talk in asked],
        "strings": list(AWKWARD),
        "talks": [talk.messages for talk in shown],
        "padded": [_Talk(text, [[exact[0]]]).messages for text in (question, longer)],
        "stop": encoder.template.end,
        "ends": list(model.generator(settings).ends),
        "max_new_tokens": settings.max_new_tokens,
        "begin_suppress_tokens": list(begin_suppress) or None,
    }
    tensors = {"pixels": pixels[:COMPARED_LOGITS], "ids": torch.tensor([as_token(ids)])}
    with writing(work):
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        save_file(tensors, work / "request.safetensors")
    texts = [str(text) for text in loaded.describe(exact, question, **given)]
    return Computed(
        prompts=[as_token(talk.ids(loaded)) for talk in asked],
        strings=strings,
        decoded=[encoder.tokenizer.decode(row) for ids in strings for row in (ids, ids[:-1])],
        texts=texts,
        talks=[_answer(loaded, talk, settings) for talk in shown],
        padded=[str(text) for text in loaded.describe([exact[0]] * 2, [question, longer], **given)],
        pipeline=texts[:1],
        images=normalize(loaded.pixels(list(images)), model.statistics).float(),
        exact=pixels,
        **_embeds_and_logits(loaded, ids, pixels[:COMPARED_LOGITS]),
    )


def _talks(question: str, images: list[Path], *, one_turn: bool) -> list[_Talk]:
    """Conversations as users have them: one image, several, none, one within the text, a system message, more turns."""
    first, last = images[0], images[-1]
    talks = [
        _Talk(question, [[first]]),
        _Talk(question, [[first, last]]),
        _Talk(question, [[]]),
        _Talk(f"What is in {IMAGE_TAG}, exactly?", [[first]]),
        _Talk(question, [[first]], system="Answer briefly."),
    ]
    if one_turn:
        return talks
    earlier = [Turn(question, 1, "Two things."), Turn("And what else?", 0, f"Nothing {IMAGE_TOKEN} else.")]
    more = [_Talk("Where?", [[first], [], later], earlier) for later in ([], [last])]
    return [*talks, *more]


def _answer(loaded: LoadedModel, talk: _Talk, settings: GenerationConfig) -> str:
    pixels = loaded.pixels([path for images in talk.images for path in images])
    return loaded.model.generate([talk.ids(loaded)], settings, images=pixels)[0].text


@torch.inference_mode()
def _embeds_and_logits(loaded: LoadedModel, ids: Sequence[int], pixels: Tensor) -> dict[str, Tensor]:
    model = loaded.model
    row = torch.tensor([ids], device=model.device)
    positions = (row[0] == IMAGE_POSITION).nonzero().squeeze(1)
    embeds = model.encode_image(pixels.to(model.device))
    logits = [
        model.llama_model(inputs_embeds=model.embed(row, each[None], positions)).logits.float().cpu() for each in embeds
    ]
    return {"embeds": embeds.float().cpu(), "logits": torch.cat(logits)}


def run_fresh(folder: Path, work: Path) -> None:
    """Answer a request by stock transformers in a new process.

    Args:
        folder: exported folder.
        work: folder of the request, which gets the reply.

    Raises:
        ExportError: It fails; the message has its reason.
    """
    done = subprocess.run(
        [sys.executable, "-", str(folder.absolute()), str(work.absolute())],
        input=SCRIPT.read_text(encoding="utf-8"),  # its own folder is not searched for modules
        cwd=work,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        ended_by = signal.Signals(-done.returncode).name
        raise ExportError(
            f"verification: {ended_by} ended the process that loads the export, as systems do where memory is "
            "short; --options model.precision=bfloat16 needs half"
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ExportError(f"verification: stock transformers fails with the export: {said[-1]}")


def read_reply(work: Path, end: str) -> tuple[Computed, dict[str, list[str]]]:
    """What the other side computed, and what is wrong by name: weights, and settings that are not in force.

    Args:
        work: folder of the reply.
        end: text that ends an answer; empty: none.
    """

    def until_end(text: str) -> str:
        return (text.split(end, 1)[0] if end else text).strip()

    reply = json.loads((work / "reply.json").read_text(encoding="utf-8"))
    faults = reply.pop("faults")
    for name in ("texts", "talks", "padded", "pipeline"):
        reply[name] = [until_end(text) for text in reply[name]]
    tensors: dict[str, Any] = load_file(work / "reply.safetensors")
    return Computed(**reply, **tensors), faults


def compare(
    ours: Computed,
    theirs: Computed,
    faults: Mapping[str, Sequence[str]],
    dtype: torch.dtype,
    statistics: ChannelStatistics,
) -> list[Check]:
    """The table.

    Args:
        ours: of the model itself.
        theirs: of the exported folder.
        faults: from `read_reply`.
        dtype: number format of the computation; answers must be equal in float32 only.
        statistics: what the images were normalised by.
    """
    vocabulary = ours.logits.shape[-1]
    share = RELATIVE[dtype]
    exact = dtype is torch.float32
    largest, mean = RESIZED_LEVELS
    grey_level = 1 / (255 * min(statistics.std))
    levels = (ours.images - theirs.images).abs() / grey_level if _alike(ours.images, theirs.images) else None
    checks = [
        Check("number format", str(dtype).removeprefix("torch."), "any", True),
        *(Check(what, f"wrong: {first_few(names, 3) or 'none'}", "none", not names) for what, names in faults.items()),
        _close("pixels, not resized", ours.exact, theirs.exact, SAME_PIXELS, relative=False),
        Check(
            f"pixels of {counted(len(ours.images), 'images')}, resized",
            "other shapes" if levels is None else f"at most {levels.max():.2g}, mean {levels.mean():.2g} grey levels",
            f"{largest:g}, mean {mean:g}",
            levels is not None and float(levels.max()) <= largest and float(levels.mean()) <= mean,
        ),
        _equal("token ids of prompts", ours.prompts, theirs.prompts),
        _equal("token ids of awkward texts", ours.strings, theirs.strings),
        _equal("these ids decoded, also cut off", ours.decoded, theirs.decoded),
        _close("image embeddings", ours.embeds, theirs.embeds, share),
        _close("logits", ours.logits, theirs.logits[..., :vocabulary], share),
    ]
    for what, names in (
        ("greedy answers", "texts"),
        ("greedy answers, more images and turns", "talks"),
        ("greedy answers, padded batch", "padded"),
        ("greedy answer of a pipeline", "pipeline"),
    ):
        checks.append(_equal(what, getattr(ours, names), getattr(theirs, names), required=exact))
    return checks


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape


def _close(what: str, ours: Tensor, theirs: Tensor, allowed: float, *, relative: bool = True) -> Check:
    """Compare numbers; those that are not finite agree with nothing."""
    unit = " of the range" if relative else ""
    if not _alike(ours, theirs):
        return Check(what, f"shape {tuple(theirs.shape)}, not {tuple(ours.shape)}", f"{allowed:g}{unit}", False)
    difference = float((ours - theirs).abs().max())
    if relative:
        difference /= float(ours.max() - ours.min())
    return Check(what, f"at most {difference:.2g}{unit}", f"{allowed:g}{unit}", difference <= allowed)


def _equal(what: str, ours: Sequence[Any], theirs: Sequence[Any], *, required: bool = True) -> Check:
    same = sum(mine == other for mine, other in zip(ours, theirs, strict=False))
    passed = len(ours) == len(theirs) == same
    allowed = "all" if required else "any, in half precision"
    return Check(what, f"{same} of {len(ours)} equal", allowed, passed or not required)


def verify(load: Callable[[], LoadedModel], folder: Path, images: Sequence[Path], written: Written) -> list[Check]:
    """Compare an exported folder with its model; the two are never in memory together.

    Args:
        load: loads the model, in the number format of the comparison.
        folder: exported folder.
        images: image files, at least one.
        written: what was written into the folder.

    Raises:
        ExportError: transformers cannot run the export.
        DataError: An image that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="minigpt4-export-") as temporary:
        work = Path(temporary)
        loaded = load()
        begin_suppress = written.decoding.get("begin_suppress_tokens", ())
        ours = compute(loaded, images, written.image_id, work, begin_suppress)
        encoder, dtype = loaded.model.encoder, loaded.model.token_embedding.weight.dtype
        statistics = loaded.model.statistics
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        run_fresh(folder, work)
        theirs, faults = read_reply(work, encoder.template.end)
    return compare(ours, theirs, faults, dtype, statistics)
