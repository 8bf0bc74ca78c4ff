"""The model as a Python object: `load()`, then `describe`, `stream` and `chat`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.matmul import use_onednn_if_exact
from minigpt4.common.schema import Config, GenerationConfig, Precision, override_generation
from minigpt4.conversation.dialogue import Dialogue, DialoguePrompt, Turn
from minigpt4.conversation.template import with_image_tag
from minigpt4.models.loading import build_model, evaluation_dtype, with_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import ImageProcessor, stack_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from minigpt4.common.schema import GenerationSettings


class Chat:
    """A conversation, for one user; the model may be shared.

    Args:
        loaded: Answers.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._dialogue = Dialogue(loaded.model.encoder.template)
        self._queries: list[Tensor] = []
        self.sent: DialoguePrompt | None = None

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers so far."""
        return self._dialogue.turns

    @property
    def dropped(self) -> int:
        """Turns that the newest prompt left out because the context was full; pictures are never left out."""
        return self.sent.dropped if self.sent else 0

    @property
    def prompt(self) -> str:
        """The newest prompt as it was sent; `<ImageHere>` stands where a picture's embeddings went."""
        return self.sent.text if self.sent else ""

    def ask(self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]) -> str:
        """The answer to the next question; arguments and errors as for `stream`."""
        for _ in self.stream(question, images, **settings):
            pass
        return self.turns[-1].answer

    def stream(
        self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]
    ) -> Iterator[str]:
        """The answer to the next question as it grows, the last item whole.

        Who stops iterating stops the computation; what was said until then stays in the conversation.

        Args:
            question: Any text.
            images: Pictures that come with it, placed in front unless the text has `<Img><ImageHere></Img>`.
            **settings: Fields of `GenerationConfig`.

        Raises:
            DataError: A picture or question that cannot be used; the conversation is as before.
            ConfigError: A setting that does not exist or cannot be.
        """
        if not isinstance(question, str) or not question.strip():
            raise DataError("the question is empty; write one")
        queries = [query[None] for query in self.loaded.encode(images)] if len(images) else []
        return self._answer(Turn(question, len(images)), queries, settings)

    def regenerate(self, **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """Another answer to the newest question as it grows.

        Raises:
            DataError: Nothing was asked yet.
        """
        turn, queries = self._taken_back()
        return self._answer(Turn(turn.question, turn.images), queries, settings)

    def undo(self) -> str:
        """Take the newest question, its pictures and its answer back, and return the question.

        Raises:
            DataError: Nothing was asked yet.
        """
        return self._taken_back()[0].question

    def restart(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self._queries.clear()
        self.sent = None

    def _taken_back(self) -> tuple[Turn, list[Tensor]]:
        if not self.turns:
            raise DataError("nothing was asked yet; ask something first")
        turn = self.turns.pop()
        kept = len(self._queries) - turn.images
        queries = self._queries[kept:]
        del self._queries[kept:]
        return turn, queries

    def _answer(self, turn: Turn, queries: list[Tensor], settings: Any) -> Iterator[str]:
        """Everything that may be refused is so now, before the first text is asked for."""
        generation = override_generation(self.loaded.defaults, settings)
        model = self.loaded.model
        self.sent = self._dialogue.fit(turn.question, turn.images, model.encoder, model.max_prompt_tokens(generation))
        self.turns.append(turn)
        self._queries += queries
        seen = torch.cat(self._queries) if self._queries else None
        return self._growing(turn, self.loaded.answer_ids(self.sent.ids, seen, generation))

    def _growing(self, turn: Turn, steps: Iterator[str]) -> Iterator[str]:
        for turn.answer in steps:
            yield turn.answer


DESCRIBE = "Describe this image in detail."
"""What is asked where nothing else is."""
BATCH_SIZE = 8


class LoadedModel:
    """A model that answers questions about pictures; any number of threads may use it.

    Wherever a picture is expected: a path, the bytes of a file, a PIL image, or an array (`processors.pictures`).
    Generation settings are the fields of `GenerationConfig` as keywords; what is not given comes from
    `evaluation.generation` of the configuration. Greedy is the default.

    Args:
        model: The network with its weights.
        cfg: The configuration it was built from.
        lock: Held during each step of computation; models with common parts need a common one.
    """

    def __init__(self, model: MiniGPT4, cfg: Config, lock: threading.Lock | None = None) -> None:
        self.model = model
        self.cfg = cfg
        self.defaults = cfg.evaluation.generation
        self.prompt = cfg.evaluation.prompt or DESCRIBE
        self._processor = ImageProcessor(cfg.model.image_size)
        # A step changes the language model for its duration (`packed_attention`), so that steps must not overlap.
        self._lock = lock or threading.Lock()

    @overload
    def describe(
        self,
        images: list[Any] | tuple[Any, ...],
        prompt: str | Sequence[str] | None = ...,
        *,
        batch_size: int = ...,
        **settings: Unpack[GenerationSettings],
    ) -> list[str]: ...

    @overload
    def describe(
        self, images: Any, prompt: str | None = ..., *, batch_size: int = ..., **settings: Unpack[GenerationSettings]
    ) -> str: ...

    def describe(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        **settings: Unpack[GenerationSettings],
    ) -> str | list[str]:
        """One answer a picture.

        Args:
            images: One picture, or a list or tuple of them.
            prompt: What to ask: one question for all, or a list of one each; None: `evaluation.prompt`, or for a
                description.
            batch_size: Pictures worked on at the same time.
            **settings: Fields of `GenerationConfig`.

        Returns:
            The answer to one picture, or the list of answers.

        Raises:
            DataError: A picture that cannot be used, or prompts that do not match.
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

    def stream(self, image: Any, prompt: str | None = None, **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """The answer as it grows, the last item whole; arguments and errors as for `describe`.

        Who stops iterating stops the computation. With beams only the whole answer comes.
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
        return LoadedModel(with_projection(self.model, ckpt), self.cfg, self._lock)

    def encode(self, images: Sequence[Any]) -> Tensor:
        """What the frozen encoders make of pictures: (N, Q, width of the Q-Former).

        Raises:
            DataError: A picture that cannot be used.
        """
        pixels = stack_images([self._processor(image) for image in images])
        with self._lock:
            return self.model.encode_queries(pixels.to(self.model.device))

    def answer_ids(self, ids: Sequence[int], queries: Tensor | None, generation: GenerationConfig) -> Iterator[str]:
        """The answer to an encoded prompt as it grows."""
        with self._lock:
            steps = self.model.stream(ids, generation, queries=queries)
        try:
            while True:
                with self._lock:
                    answer = next(steps, None)
                if answer is None:
                    return
                yield answer.text
        finally:
            steps.close()  # type: ignore[attr-defined]

    def _question(self, prompt: object) -> str:
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"prompt is of type {type(prompt).__name__}; expected text")
        return self.prompt if prompt is None else prompt

    def _describe(
        self, images: Sequence[Any], prompts: Sequence[str], generation: GenerationConfig, batch_size: int
    ) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(images), batch_size):
            group = slice(start, start + batch_size)
            queries = self.encode(images[group])
            ids = [self.model.encoder.prompt(with_image_tag(prompt)) for prompt in prompts[group]]
            for prompt in ids:
                self.model.encoder.check_length(prompt, "prompt", self.model.max_prompt_tokens(generation))
            with self._lock:
                answers += [one.text for one in self.model.generate(ids, generation, queries=queries)]
        return answers


def load(
    cfg_path: str | Path | None = None,
    ckpt: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    options: Sequence[str] = (),
) -> LoadedModel:
    """A model that is ready to answer.

    Args:
        cfg_path: A YAML file as for evaluation; None: the tiny model that ships with the package.
        ckpt: Checkpoint with the projection; None: the configuration's `model.ckpt`.
        device: auto, cpu, cuda, or cuda:1 and so on.
        precision: Of the frozen weights: auto, float32, bfloat16 or float16; auto: `evaluation.precision`.
        options: `a.b=c` strings over the configuration, for example `model.low_resource=4bit`.

    Raises:
        MiniGPT4Error: A configuration, path, checkpoint or device that cannot be used.
    """
    return from_config(load_config(cfg_path, options).config, ckpt, device=device, precision=precision)


def from_config(
    cfg: Config, ckpt: str | Path | None = None, *, device: str = "auto", precision: str = "auto"
) -> LoadedModel:
    """As `load`, from a configuration that has been read."""
    if ckpt is not None:
        cfg = replace(cfg, model=replace(cfg.model, ckpt=str(ckpt)))
    if cfg.model.ckpt is None:
        raise ConfigError("no checkpoint: an untrained projection says nothing; give ckpt (--ckpt FILE) or model.ckpt")
    if precision not in [known.value for known in Precision]:
        raise ConfigError(f"precision: '{precision}' should be one of {', '.join(known.value for known in Precision)}")
    wanted = cfg.evaluation.precision if precision == "auto" else Precision(precision)
    where = _device(cfg.run.device if device == "auto" else device)
    if where.type == "cpu":
        use_onednn_if_exact()
    return LoadedModel(build_model(cfg.model, where, evaluation_dtype(wanted, where)), cfg)


def _device(name: str) -> torch.device:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: '{name}' should be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= found):
        raise ConfigError(f"device: there is no '{name}' here (GPUs: {found}); choose auto, cpu, or another number")
    return device
