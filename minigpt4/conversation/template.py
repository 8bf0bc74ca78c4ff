"""How a conversation is written, and encoded for a language model, in training, evaluation and chat.

The published templates by name, and prompts and answers -> token ids with positions for image embeddings, and labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError, DataError, did_you_mean
from minigpt4.common.files import read_text, replace_lone_surrogates, require_path
from minigpt4.common.schema import ModelConfig
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION, IMAGE_TOKEN, Encoded, Record
from minigpt4.conversation.tokenizer import Tokenizer

IMAGE_TAG = f"<Img>{IMAGE_TOKEN}</Img>"
"""An image in a prompt."""
QUESTION = "{question}"
"""The place of a record's question in a prompt that goes around it."""
STAGE1_PATTERN = "{}"
"""The pattern of stage 1, which puts nothing around the image."""
DATE = datetime(2024, 7, 26, tzinfo=timezone.utc)
"""LLaMA 3's day, for chat templates that name one: a checkpoint is asked tomorrow as it was trained today."""
NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""Where a chat template asks for the day."""
OWN_TEMPLATE = "chat"
"""Value of `model.template` for the language model's own template."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a conversation's text.

    Attributes:
        text: the part.
        is_answer: whether it is an answer, or else a question with what the template puts around it.
    """

    text: str
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """How turns of dialogue are written.

    Attributes:
        pattern: text around the instruction, which replaces `{}`.
        end: text that ends an answer: trained on, and a stop string in generation.
        first_pattern: pattern of the first turn, where it differs from that of the others.
        system_pattern: pattern of the first turn with a system message, which replaces `{system}`; empty: the message
            is put in front of the first turn.
        separator: text between an answer and the next turn; None: `end`, unless the turn itself begins with it.
        system: the system message; empty: none.
        in_pieces: tokenise each question and each earlier answer with its end alone, not all of a prompt at once.
        thought: what a prompt ends with, but no earlier turn has: the empty thoughts of a model that can think.
    """

    pattern: str
    end: str
    first_pattern: str = ""
    system_pattern: str = ""
    separator: str | None = None
    system: str = ""
    in_pieces: bool = False
    thought: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Identifiers of tasks that may stand in front of a question, as `[vqa]`: those of MiniGPT-v2, or none."""
        from minigpt4.common.boxes import TASKS  # training asks nobody

        return TASKS if self.in_pieces else ()

    @property
    def opening_pattern(self) -> str:
        """The pattern of the first turn, without a system message."""
        return self.first_pattern or self.pattern

    def render(self, instruction: str) -> str:
        """The prompt whose continuation is the answer."""
        return self._opening(instruction) + self.thought

    def _opening(self, instruction: str) -> str:
        """The first turn, up to its answer."""
        if not self.system:
            return self.opening_pattern.replace("{}", instruction)
        before, after = (self.system_pattern or "{system}" + self.opening_pattern).split("{}")
        return before.replace("{system}", self.system) + instruction + after

    def render_next(self, instruction: str) -> str:
        """What follows an answer to ask for another one."""
        turn = self.pattern.replace("{}", instruction)
        if self.separator is not None:
            return self.separator + turn
        return turn if self.end and self.pattern.startswith(self.end) else self.end + turn

    def pieces(self, earlier: Sequence[tuple[str, str]], question: str, *, trained: bool = False) -> list[Piece]:
        """The prompt whose continuation is the answer to `question`.

        Args:
            earlier: questions and answers before it.
            question: the last question.
            trained: put the end that is trained on behind each earlier answer, instead of what separates it from the
                next turn. The texts differ for a template whose separator does not begin with the end.
        """
        ended = trained or self.in_pieces
        pieces = []
        for number, (asked, answer) in enumerate([*earlier, (question, "")]):
            text = self.render_next(asked) if number else self._opening(asked)
            if number and ended and self.end and text.lstrip().startswith(self.end):
                text = text.lstrip().removeprefix(self.end)
            pieces.append(Piece(text if number < len(earlier) else text + self.thought))
            if number < len(earlier):
                # A model may generate the placeholder's text, which stands for no image.
                said = answer if trained else answer.replace(IMAGE_TOKEN, "")
                pieces.append(Piece(said + self.end if ended else said, is_answer=True))
        return pieces


TEMPLATES = {
    "vicuna0": Template("###Human: {} ###Assistant: ", "###"),
    # As written by MiniGPT-4's demo page, which differs slightly from what its projection was trained with.
    "vicuna0_demo": Template(
        "###Human: {}###Assistant: ",
        "###",
        system="Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it "
        "to you. Please answer my questions.",
    ),
    "llama2": Template(
        "[INST] {} [/INST] ",
        "</s>",
        system_pattern="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{} [/INST] ",
        separator=" </s><s>",
    ),
    "minigpt_v2": Template("[INST] {} [/INST]", "</s>", separator="</s><s>", in_pieces=True),
}
"""The published templates."""


def configured_template(cfg: ModelConfig) -> Template:
    """The template of `model.template`, or else of `model.prompt_template` and `model.end_sym`.

    A pattern and end that belong to a published template bring its separator and the place of its system message.

    Raises:
        ConfigError: An unknown name, or a language model without a usable template of its own.
    """
    if cfg.template == OWN_TEMPLATE:
        template = own_template(Path(str(cfg.llama_model)))
    elif cfg.template is not None:
        if cfg.template not in TEMPLATES:
            hint = did_you_mean(cfg.template, [*TEMPLATES, OWN_TEMPLATE])
            raise ConfigError(f"model.template: no template '{cfg.template}'; {hint}")
        template = TEMPLATES[cfg.template]
    else:
        template = Template(cfg.prompt_template, cfg.end_sym)
        same = [known for known in TEMPLATES.values() if (known.pattern, known.end) == (template.pattern, template.end)]
        template = replace(same[0], system="") if same else template
    return replace(template, system=cfg.system) if cfg.system else template


def check_task(task: str | None, cfg: ModelConfig) -> None:
    """Refuse a task where the configured model was trained on none.

    Raises:
        ConfigError: It was not; or as for `configured_template`.
    """
    if task is not None and task not in configured_template(cfg).tasks:
        raise ConfigError(
            f"--task {task}: only MiniGPT-v2 knows tasks, and this model's template is another "
            f"(model.prompt_template {cfg.prompt_template!r}); leave --task out, or name MiniGPT-v2 by --cfg-path"
        )


def own_template(folder: Path) -> Template:
    """The chat template in a language model's folder (`tokenizer_config.json` or `chat_template.jinja`) as plain data.

    The patterns are what its Jinja program writes around sample turns, so that training, evaluation and chat share one
    object and run no program.

    Raises:
        ConfigError: There is none, or it does more than concatenate turns.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.template: no usable tokenizer in {folder}: {error}") from error
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.template: the tokenizer in {folder} has no chat template; name one of {', '.join(TEMPLATES)}, or "
            "set model.prompt_template and model.end_sym"
        )

    program = NOW.sub(lambda call: repr(DATE.strftime(call[2])), tokenizer.get_chat_template())

    def write(texts: Sequence[str], system: str = "", asks: bool = True) -> str:
        roles = ("user", "assistant")
        turns = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
        messages = [{"role": "system", "content": system}] * bool(system) + turns
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=program, tokenize=False, add_generation_prompt=asks, enable_thinking=False
        )
        return text.removeprefix(tokenizer.bos_token or "")

    return _template_like(write, f"model.template: the chat template in {folder}")


def _template_like(write: Callable[..., str], source: str) -> Template:
    """The template that writes turns as `write` does.

    Args:
        write: (texts of the turns, system message, whether an answer is asked for) -> prompt.
        source: name of the template, for messages.

    Raises:
        ConfigError: There is none.
    """
    turns = ("instruction one", "answer one", "instruction two", "answer two", "instruction three")
    question, answer, following, last_answer, last_question = turns
    asked, (opening, _, rest) = write([question]), write(turns[:3]).partition(answer)
    # Some write a space between prompt and answer, which belongs to the prompt here: answers are stripped.
    gap = opening.removeprefix(asked)
    gap = gap if gap.isspace() else ""
    thought = asked.removeprefix(opening) if asked.startswith(opening) else ""
    separator = write(turns[:2], asks=False).partition(answer)[2]
    template = Template(
        pattern=rest.removeprefix(separator).removesuffix(thought).replace(following, "{}") + gap,
        end=separator.strip(),
        first_pattern=asked.removesuffix(thought).replace(question, "{}") + gap,
        system_pattern=_system_pattern(write, question, gap, thought),
        separator=separator if rest.startswith(separator) else "",
        thought=thought,
    )
    pieces = template.pieces([(question, answer), (following, last_answer)], last_question)
    if "".join(piece.text for piece in pieces) != write(turns) + gap or not template.end:
        raise ConfigError(
            f"{source} writes earlier turns in another way than the newest; set model.prompt_template and "
            "model.end_sym instead"
        )
    return template


def _system_pattern(write: Callable[..., str], question: str, gap: str, thought: str) -> str:
    """The pattern of the first turn with a system message; empty where the template takes none."""
    from jinja2 import TemplateError

    try:
        written = write([question], system="system message")
    except TemplateError:
        return ""
    if "system message" not in written:
        return ""
    return written.removesuffix(thought).replace("system message", "{system}").replace(question, "{}") + gap


def with_image_tag(question: str, images: int = 1) -> str:
    """`question` with its images in front of it, unless it has placeholders."""
    return question if IMAGE_TOKEN in question else " ".join([IMAGE_TAG] * images + [question])


def place_images(questions: Sequence[str], num_images: int, source: str) -> list[str]:
    """The questions of a conversation with a placeholder for each image, in front of the first where they have none.

    Raises:
        DataError: They have placeholders, but not as many as images.
    """
    placed = list(questions)
    if not any(IMAGE_TOKEN in question for question in placed):
        placed[0] = with_image_tag(placed[0], num_images)
    check_placeholders("\n".join(placed), num_images, source)
    return placed


def check_placeholders(instruction: str, num_images: int, source: str) -> None:
    """Refuse an instruction whose placeholders do not match its images.

    Raises:
        DataError: The counts differ.
    """
    found = instruction.count(IMAGE_TOKEN)
    if found != num_images:
        raise DataError(
            f"{source}: {found} image placeholder(s) for {num_images} image(s) in {instruction!r}; "
            f"write {IMAGE_TAG} where each image belongs"
        )


def read_prompts(path: str, key: str) -> Sequence[str]:
    """Instructions of a text file, one a line: with exactly one image, or around a question, with at most one.

    Args:
        path: the file.
        key: its key in the configuration, for messages.

    Raises:
        ConfigError: The file does not exist or holds no prompt.
        DataError: The file is not UTF-8, or a line has a wrong number of placeholders.
    """
    lines = read_text(require_path(path, key)).splitlines()
    prompts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(
            f"{key}: {path} holds no prompt; write one instruction a line, such as '{IMAGE_TAG} Describe it.'"
        )
    for number, prompt in prompts:
        source, questions = f"{path}, line {number}", prompt.count(QUESTION)
        if questions > 1:
            raise DataError(f"{source}: {QUESTION} comes {questions} times in {prompt!r}; write it once")
        if not questions or IMAGE_TOKEN in prompt:
            check_placeholders(prompt, 1, source)
    return [prompt for _, prompt in prompts]


class PromptPool:
    """The prompts of a dataset: instructions for records without a question, and prompts around questions.

    Args:
        prompts: instructions; in those that go around a question, `{question}` marks its place.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self.instructions = [prompt for prompt in prompts if QUESTION not in prompt]
        self.around = [prompt for prompt in prompts if QUESTION in prompt]

    def questions(self, record: Record, choose: Callable[[Sequence[str]], str]) -> list[str]:
        """The questions of a record as they are asked, not yet with placeholders of its images.

        The questions of a conversation stay as they are written.

        Args:
            record: an annotated image.
            choose: picks one of several prompts.

        Raises:
            DataError: The record has no question, and all prompts go around one.
        """
        earlier = [question for question, _ in record.earlier]
        if record.question is not None and self.around and not earlier:
            return [choose(self.around).replace(QUESTION, record.question)]
        if record.question is not None:
            return [*earlier, record.question]
        if not self.instructions:
            raise DataError(
                f"{record.source}: there is no question, but all prompts of the dataset go around one, such as "
                f"{self.around[0]!r}; add a question to the row, or a prompt without '{QUESTION}'"
            )
        return [*earlier, choose(self.instructions)]


class PromptEncoder:
    """Encodes [BOS][prompt with images][answer + end], in the order of MiniGPT-4's `preparing_embedding`.

    Each segment of text between images is tokenised alone.

    Args:
        tokenizer: tokenizer of the language model.
        template: template of every prompt.
        num_image_tokens: embeddings of an image (Q).
        max_txt_len: longest answer with its end in tokens; longer ones are cut and lose the end.
        max_context_len: longest prompt in tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        num_image_tokens: int,
        max_txt_len: int = 160,
        max_context_len: int = 3800,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.num_image_tokens = num_image_tokens
        self.max_txt_len = max_txt_len
        self.max_context_len = max_context_len

    def prompt(
        self,
        instruction: str,
        num_images: int = 1,
        source: str = "prompt",
        earlier: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Ids of BOS and the rendered instruction.

        Args:
            instruction: the question, with placeholders of its images.
            num_images: images of all questions.
            source: name of the prompt for messages.
            earlier: questions and answers before it.

        Raises:
            DataError: Placeholders and images do not match, or the prompt is longer than max_context_len.
        """
        ids = self.encode_pieces(self.template.pieces(earlier, instruction), num_images, source)
        self.check_length(ids, source, self.max_context_len)
        return ids

    def encode_rendered(self, text: str, num_images: int = 1, source: str = "prompt") -> list[int]:
        """Ids of BOS and a text to which the template has been applied; errors as for `prompt`."""
        ids = self.encode_pieces([Piece(text)], num_images, source)
        self.check_length(ids, source, self.max_context_len)
        return ids

    def encode_pieces(self, pieces: Sequence[Piece], num_images: int, source: str) -> list[int]:
        """Ids of BOS and a prompt of any length.

        Raises:
            DataError: Placeholders and images do not match.
        """
        parts = [piece.text for piece in pieces]
        text = "".join(parts)
        check_placeholders(text, num_images, source)
        ids = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        for part in parts if self.template.in_pieces else [text]:
            ids += self._with_images(part)
        return ids

    def _with_images(self, text: str) -> list[int]:
        """Ids of a text in which placeholders stand for images."""
        ids: list[int] = []
        for index, segment in enumerate(replace_lone_surrogates(text).split(IMAGE_TOKEN)):
            if index:
                ids.extend([IMAGE_POSITION] * self.num_image_tokens)
            ids.extend(self.tokenizer.encode(segment))
        return ids

    def check_length(self, ids: Sequence[int], source: str, max_tokens: int) -> None:
        """Refuse a prompt of more than `max_tokens` tokens.

        Raises:
            DataError: It is longer.
        """
        if len(ids) > max_tokens:
            raise DataError(
                f"{source}: the prompt has {len(ids)} tokens with its images, there is room for {max_tokens} "
                "(model.max_context_len, and the language model's own context, on a page serving.context, less "
                "max_new_tokens); shorten it, or raise the limit"
            )

    def encode_example(
        self,
        instruction: str,
        answer: str,
        num_images: int = 1,
        source: str = "sample",
        earlier: Sequence[tuple[str, str]] = (),
    ) -> Encoded:
        """A training example with labels for each answer and its end; arguments and errors as for `prompt`.

        Of what follows the first question, `max_txt_len` tokens are kept.
        """
        first, *pieces = self.template.pieces(earlier, instruction, trained=True)
        check_placeholders(
            "\n".join(piece.text for piece in (first, *pieces) if not piece.is_answer), num_images, source
        )
        prompt = self.encode_pieces([first], first.text.count(IMAGE_TOKEN), source)
        self.check_length(prompt, source, self.max_context_len)
        ids: list[int] = []
        labels: list[int] = []
        for piece in (*pieces, Piece(answer + self.template.end, is_answer=True)):
            new = self.tokenizer.encode(piece.text) if piece.is_answer else self._with_images(piece.text)
            ids += new
            labels += new if piece.is_answer else [IGNORED_LABEL] * len(new)
        if IMAGE_POSITION in ids[self.max_txt_len :]:
            raise DataError(
                f"{source}: the image of a later question is behind the first {self.max_txt_len} tokens of answers "
                "(model.max_txt_len), which are all that is kept; raise the limit, or shorten the conversation"
            )
        return Encoded(
            input_ids=prompt + ids[: self.max_txt_len],
            labels=[IGNORED_LABEL] * len(prompt) + labels[: self.max_txt_len],
        )

    def labelled_segments(self, encoded: Encoded) -> Sequence[tuple[str, bool]]:
        """Segments of an example as (text, whether it is trained on), images as `<ImageHere>*Q`, for display.

        Special tokens are shown by their names, so that the end of an answer can be seen.
        """
        tagged = [
            (i == IMAGE_POSITION, label != IGNORED_LABEL, i)
            for i, label in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
        segments = []
        for (is_image, is_target), group in groupby(tagged, key=lambda item: item[:2]):
            ids = [item[2] for item in group]
            if is_image:
                segments.append((f"{IMAGE_TOKEN}*{len(ids)}", False))
                continue
            segments.append((self._shown(ids), is_target))
        return segments

    def _shown(self, ids: Sequence[int]) -> str:
        names = self.tokenizer.special_names
        runs = groupby(ids, key=lambda i: i in names)
        return "".join(
            "".join(names[i] for i in run) if special else self.tokenizer.decode(list(run)) for special, run in runs
        )
