"""The model as a Python object: `load()`, then `describe`, `stream` and `chat`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from minigpt4.common.boxes import AnswerText, misspelt
from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError, MiniGPT4Error
from minigpt4.common.matmul import use_onednn_if_exact
from minigpt4.common.registry import processors
from minigpt4.common.schema import DESCRIBE, Config, GenerationConfig, Precision, override_generation
from minigpt4.conversation.dialogue import Dialogue, DialoguePrompt, Turn
from minigpt4.conversation.template import check_placeholders, with_image_tag
from minigpt4.models.generation import Answer
from minigpt4.models.loading import build_model, choose_precision, with_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.toy import NOTE, UNKNOWN_IMAGE, is_toy, looks_drawn
from minigpt4.processors.image import stack_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from minigpt4.common.schema import GenerationSettings

logger = logging.getLogger(__name__)
IMAGE_PROCESSOR = "blip2_image_eval"
"""Registered processor of all images that users bring."""
BATCH_SIZE = 8
"""Images that `describe` works on at the same time."""


def load(
    cfg_path: str | Path | None = None,
    ckpt: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    options: Sequence[str] = (),
) -> LoadedModel:
    """Load a model that is ready to answer.

    Args:
        cfg_path: a YAML file as for evaluation; None: the tiny model that ships with the package.
        ckpt: checkpoint with the projection; None: the configuration's `model.ckpt`.
        device: auto, cpu, cuda, or cuda:1 and so on; auto: `run.device`.
        precision: number format of the frozen weights: auto, float32, bfloat16 or float16; auto: `model.precision`.
        options: `a.b=c` strings over the configuration, for example `model.low_resource=4bit`.

    Raises:
        MiniGPT4Error: A configuration, path, checkpoint or device that cannot be used.
    """
    return from_config(load_config(cfg_path, options).config, ckpt, device=device, precision=precision)


def from_config(
    cfg: Config,
    ckpt: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    precision: str | torch.dtype = "auto",
) -> LoadedModel:
    """As `load`, from a configuration that has been read; ranks share a format that one of them chose, as a dtype."""
    if ckpt is not None:
        cfg = replace(cfg, model=replace(cfg.model, ckpt=str(ckpt)))
    if cfg.model.ckpt is None:
        raise ConfigError("no checkpoint: an untrained projection says nothing; give ckpt (--ckpt FILE) or model.ckpt")
    formats = [known.value for known in Precision]
    if isinstance(precision, str) and precision not in formats:
        raise ConfigError(f"precision: '{precision}' should be one of {', '.join(formats)}")
    if isinstance(device, str):
        device = find_device(cfg.run.device, "run.device") if device == "auto" else find_device(device, "device")
    if device.type == "cpu":
        use_onednn_if_exact()
    if isinstance(precision, str):
        model = cfg.model if precision == "auto" else replace(cfg.model, precision=Precision(precision))
        precision = choose_precision(model, device).frozen
    return LoadedModel(
        build_model(cfg.model, device, precision),
        processors.get(IMAGE_PROCESSOR)(image_size=cfg.model.image_size),
        cfg.evaluation.generation,
        cfg.evaluation.prompt or DESCRIBE,
        name=f"{cfg.model.arch} {cfg.model.model_type}",
    )


class LoadedModel:
    """A model that answers questions about images; any number of threads may use it.

    Wherever an image is expected: a path, the bytes of a file, a PIL image, or an array (`processors.image`).
    Generation settings are fields of `GenerationConfig` as keywords; those not given come from `defaults`.

    Args:
        model: the network with its weights.
        image_processor: an image in any of these forms, and its name for messages -> (3, S, S).
        defaults: generation settings; greedy unless the configuration says otherwise.
        prompt: question where none is given.
        lock: held during each step of computation; models that share weights need a common one.
        name: what kind of model it is, for people.

    Attributes:
        toy: whether it is the tiny model that ships with the package, which knows drawn scenes only.
    """

    def __init__(
        self,
        model: MiniGPT4,
        image_processor: Callable[..., Tensor],
        defaults: GenerationConfig,
        prompt: str = DESCRIBE,
        lock: threading.Lock | None = None,
        name: str = "model",
    ) -> None:
        self.name = name
        self.toy = is_toy(model.base)
        self.model = model
        self.image_processor = image_processor
        self.defaults = defaults
        self.prompt = prompt
        # A step changes the language model while it runs (`packed_attention`), so steps must not overlap.
        self.lock = lock or threading.Lock()
        self._warned: set[str] = set()

    @property
    def summary(self) -> str:
        """Name, device and number format, for example `minigpt4 vicuna0_7b on cuda:0 in float16`."""
        language_model = self.model.llama_model
        bits = next((n for n in (4, 8) if getattr(language_model, f"is_loaded_in_{n}bit", False)), None)
        number_format = f"{bits} bits" if bits else str(next(language_model.parameters()).dtype).removeprefix("torch.")
        return f"{self.name} on {self.model.device} in {number_format}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """As `Template.tasks`."""
        return self.model.encoder.template.tasks

    @property
    def note(self) -> str:
        """What a user should know about the model before asking it anything; empty: nothing."""
        return NOTE if self.toy else ""

    @overload
    def describe(
        self,
        images: list[Any] | tuple[Any, ...],
        prompt: str | Sequence[str] | None = ...,
        *,
        batch_size: int = ...,
        **settings: Unpack[GenerationSettings],
    ) -> list[AnswerText]: ...

    @overload
    def describe(
        self, images: Any, prompt: str | None = ..., *, batch_size: int = ..., **settings: Unpack[GenerationSettings]
    ) -> AnswerText: ...

    def describe(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        **settings: Unpack[GenerationSettings],
    ) -> AnswerText | list[AnswerText]:
        """Answer one question about each image; `boxes` of an answer are those that it names.

        Args:
            images: one image, or a list or tuple of them.
            prompt: one question for all images, or a list with one for each; None: `self.prompt`.
            batch_size: images worked on at the same time.
            **settings: fields of `GenerationConfig`.

        Returns:
            The answer about one image, or the list of answers.

        Raises:
            DataError: An image that cannot be used, or prompts that do not match.
            ConfigError: A setting that does not exist or cannot be.
        """
        generation = override_generation(self.defaults, settings)
        if not isinstance(images, list | tuple):
            return self._describe([images], [self._question(prompt)], generation, 1)[0]
        prompts = [prompt] * len(images) if prompt is None or isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images):
            raise DataError(f"{len(prompts)} prompts for {len(images)} images; give one for all, or one for each")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, should be at least 1")
        return self._describe(images, [self._question(text) for text in prompts], generation, batch_size)

    def stream(
        self, image: Any, prompt: str | None = None, **settings: Unpack[GenerationSettings]
    ) -> Iterator[AnswerText]:
        """The answer as it grows, the complete one last; arguments and errors as for `describe`.

        Closing the iterator stops generation. With beam search only the complete answer comes.
        """
        return self.chat().stream(self._question(prompt), [image], **settings)

    def chat(self) -> Chat:
        """A new conversation."""
        return Chat(self)

    def with_projection(self, ckpt: str | Path) -> LoadedModel:
        """A second model with another checkpoint's projection; all frozen parts are shared.

        Raises:
            CheckpointError: It does not fit.
        """
        twin = with_projection(self.model, ckpt)
        return LoadedModel(twin, self.image_processor, self.defaults, self.prompt, self.lock, self.name)

    def encode(self, images: Sequence[Any]) -> Tensor:
        """The frozen encoders' features of N images: (N, Q, width of the queries).

        Raises:
            DataError: An image that cannot be used.
        """
        return self._encode(self.pixels(images))

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """N images as the vision encoder takes them, (N, 3, S, S).

        Raises:
            DataError: An image that cannot be used.
        """
        return stack_images([self.image_processor(image) for image in images])

    def keep_images(self, pixels: Tensor) -> list[Any]:
        """What conversations keep of N images, for `answer` and `answer_ids`: here the features of each, (1, Q, width).

        Args:
            pixels: as `pixels` makes them, (N, 3, S, S).
        """
        return list(self._encode(pixels).split(1))

    def max_prompt_tokens(self, generation: GenerationConfig) -> int:
        """Longest prompt behind which the answer fits."""
        return self.model.max_prompt_tokens(generation)

    def remark(self, question: str, pixels: Tensor | None) -> str:
        """What to say beside an answer; it is logged once. Empty unless the model can know nothing of the images, or
        the question a misspelt task or box.

        Args:
            question: the question.
            pixels: its images, (N, 3, S, S); None: there are none.
        """
        unknown = self.toy and pixels is not None and not all(map(looks_drawn, pixels))
        remarks = [UNKNOWN_IMAGE if unknown else "", misspelt(question) if self.tasks else ""]
        for remark in filter(None, remarks):
            if remark not in self._warned:
                self._warned.add(remark)
                logger.warning("%s", remark)
        return "; ".join(filter(None, remarks))

    def answer(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Any]], generation: GenerationConfig
    ) -> list[Answer]:
        """The answers to encoded prompts.

        Args:
            prompts: token ids of each.
            images: images of each, as `keep_images` keeps them.
            generation: all settings.
        """
        queries = [features for own in images for features in own]
        with self.lock:
            return self.model.generate(prompts, generation, queries=torch.cat(queries) if queries else None)

    def answer_ids(self, ids: Sequence[int], images: Sequence[Any], generation: GenerationConfig) -> Iterator[Answer]:
        """The answer to an encoded prompt with its images as it grows; closing the iterator stops generation.

        Args:
            ids: token ids of the prompt.
            images: its images, as `keep_images` keeps them.
            generation: all settings.
        """
        with self.lock:
            queries = torch.cat(list(images)) if images else None
            steps = self.model.stream(ids, generation, queries=queries)
        try:
            while True:
                with self.lock:
                    answer = next(steps, None)
                if answer is None:
                    return
                yield answer
        finally:
            steps.close()  # type: ignore[attr-defined]

    def _encode(self, pixels: Tensor) -> Tensor:
        with self.lock:
            return self.model.encode_queries(pixels.to(self.model.device))

    def _question(self, prompt: object) -> str:
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"prompt is of type {type(prompt).__name__}; expected text")
        return self.prompt if prompt is None else prompt

    def _describe(
        self, images: Sequence[Any], prompts: Sequence[str], generation: GenerationConfig, batch_size: int
    ) -> list[AnswerText]:
        answers: list[AnswerText] = []
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            pixels = self.pixels(images[batch])
            for image, prompt in zip(pixels, prompts[batch], strict=True):
                self.remark(prompt, image.unsqueeze(0))
            kept = self.keep_images(pixels)
            ids = [self.model.encoder.prompt(with_image_tag(prompt)) for prompt in prompts[batch]]
            for encoded in ids:
                self.model.encoder.check_length(encoded, "prompt", self.max_prompt_tokens(generation))
            answers += [AnswerText(one.text) for one in self.answer(ids, [[one] for one in kept], generation)]
        return answers


class Chat:
    """One user's conversation with one model, which other users may share.

    A `Dialogue` holds its texts and renders them; this adds the images' features and the model that answers. The
    page's `SideBySideChat` puts the same questions to several of these.

    Args:
        loaded: the model.

    Attributes:
        sent: the newest prompt; None before the first question.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.sent: DialoguePrompt | None = None
        self._dialogue = Dialogue(loaded.model.encoder.template)
        self._images: list[Any] = []

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers so far."""
        return self._dialogue.turns

    @property
    def system(self) -> str:
        """The system message, which the next question is asked with; can be set, empty: none.

        Raises:
            DataError: It contains an image placeholder.
        """
        return self._dialogue.template.system

    @system.setter
    def system(self, message: str) -> None:
        check_placeholders(message, 0, "system message")
        self._dialogue.template = replace(self._dialogue.template, system=message)

    @property
    def dropped(self) -> int:
        """Turns that the newest prompt left out because the context was full; images are never left out."""
        return self.sent.dropped if self.sent else 0

    @property
    def prompt(self) -> str:
        """The newest prompt as it was sent, with `<ImageHere>` in place of each image's embeddings."""
        return self.sent.text if self.sent else ""

    def ask(self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]) -> AnswerText:
        """The answer to the next question; arguments and errors as for `stream`."""
        for _ in self.stream(question, images, **settings):
            pass
        return AnswerText(self.turns[-1].answer)

    def stream(
        self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]
    ) -> Iterator[AnswerText]:
        """The answer to the next question as it grows, the complete one last.

        Closing the iterator stops generation; the answer so far stays in the conversation.

        Args:
            question: any text.
            images: images that come with it, placed in front unless the text has `<Img><ImageHere></Img>`.
            **settings: fields of `GenerationConfig`.

        Raises:
            DataError: An image or question that cannot be used; the conversation is unchanged.
            ConfigError: A setting that does not exist or cannot be.
        """
        if not isinstance(question, str) or not question.strip():
            raise DataError("the question is empty; write one")
        if not len(images):
            return self._answer(Turn(question, remark=self.loaded.remark(question, None)), [], settings)
        pixels = self.loaded.pixels(images)
        turn = Turn(question, len(images), remark=self.loaded.remark(question, pixels))
        return self._answer(turn, self.loaded.keep_images(pixels), settings)

    def regenerate(self, **settings: Unpack[GenerationSettings]) -> Iterator[AnswerText]:
        """Another answer to the newest question as it grows.

        Raises:
            DataError: There is no question yet, or it does not fit beside so long an answer.
            ConfigError: A setting that does not exist or cannot be; the conversation is unchanged.
        """
        turn, images = self._pop()
        try:
            return self._answer(Turn(turn.question, turn.images, remark=turn.remark), images, settings)
        except MiniGPT4Error:
            self.turns.append(turn)
            self._images += images
            raise

    def undo(self) -> str:
        """Remove the newest question with its images and its answer, and return the question.

        Raises:
            DataError: There is no question yet.
        """
        return self._pop()[0].question

    def restart(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self._images.clear()
        self.sent = None

    def _pop(self) -> tuple[Turn, list[Any]]:
        """Remove the newest turn and what was kept of its images."""
        if not self.turns:
            raise DataError("nothing was asked yet; ask something first")
        turn = self.turns.pop()
        first = len(self._images) - turn.images
        images = self._images[first:]
        del self._images[first:]
        return turn, images

    def _answer(self, turn: Turn, images: list[Any], settings: Any) -> Iterator[AnswerText]:
        """The answer as it grows; whatever can be refused is refused before the iterator is returned."""
        generation = override_generation(self.loaded.defaults, settings)
        encoder, longest = self.loaded.model.encoder, self.loaded.max_prompt_tokens(generation)
        self.sent = self._dialogue.fit(turn.question, turn.images, encoder, longest)
        self.turns.append(turn)
        self._images += images
        steps = self.loaded.answer_ids(self.sent.ids, tuple(self._images), generation)

        def growing() -> Iterator[AnswerText]:
            start = time.perf_counter()
            for answer in steps:
                turn.answer, turn.tokens = answer.text, len(answer.token_ids)
                turn.seconds = time.perf_counter() - start
                yield AnswerText(turn.answer)

        return growing()


def find_device(name: str, key: str) -> torch.device:
    """A device of this machine.

    Args:
        name: auto, cpu, cuda, or cuda:1 and so on; auto: the first GPU, or the CPU where there is none.
        key: the setting or argument that names it, for messages.

    Raises:
        ConfigError: There is no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: '{name}' should be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise ConfigError(f"{key}: there is no '{name}' here (GPUs: {gpus}); name another, or leave it out")
    return device
