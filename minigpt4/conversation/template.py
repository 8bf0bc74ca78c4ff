"""Dialogue templates: one object for training, evaluation and chat, and the published ones by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError, DataError, did_you_mean
from minigpt4.common.schema import ModelConfig
from minigpt4.common.types import IMAGE_TOKEN

IMAGE_TAG = f"<Img>{IMAGE_TOKEN}</Img>"
"""How a picture stands in a prompt."""
NO_TEMPLATE = "{}"
"""The pattern of stage 1, which puts nothing around a picture."""


@dataclass(frozen=True, slots=True)
class Template:
    """How turns of dialogue are written.

    Attributes:
        pattern: Text around the instruction; `{}` marks its place.
        end: Ends an answer: learnt in training, stops generation.
        opening: The pattern of the first turn, where it differs from that of the others.
        with_system: The pattern of the first turn behind a system message, whose place `{system}` marks; without it
            the message stands in front of the first turn.
        joint: What stands between an answer and the next turn; None: `end`, once where the turn begins with it.
        system: The system message; empty: none.
    """

    pattern: str
    end: str
    opening: str = ""
    with_system: str = ""
    joint: str | None = None
    system: str = ""

    @property
    def first(self) -> str:
        """The pattern of the first turn, without a system message."""
        return self.opening or self.pattern

    def render(self, instruction: str) -> str:
        """The prompt whose continuation is the answer."""
        if not self.system:
            return self.first.replace("{}", instruction)
        before, after = (self.with_system or "{system}" + self.first).split("{}")
        return before.replace("{system}", self.system) + instruction + after

    def render_next(self, instruction: str) -> str:
        """What follows an answer to ask for another one."""
        turn = self.pattern.replace("{}", instruction)
        if self.joint is not None:
            return self.joint + turn
        return turn if self.end and self.pattern.startswith(self.end) else self.end + turn

    def cut(self, text: str) -> str:
        """What stands before the first end mark, stripped."""
        return text.split(self.end, 1)[0].strip() if self.end else text.strip()


def with_image_tag(question: str, images: int = 1) -> str:
    """`question` with its pictures in front of it, unless it places them itself."""
    return question if IMAGE_TOKEN in question else " ".join([IMAGE_TAG] * images + [question])


def check_placeholders(instruction: str, num_images: int, source: str) -> None:
    """Refuse an instruction whose placeholders do not match its pictures.

    Raises:
        DataError: The counts differ.
    """
    found = instruction.count(IMAGE_TOKEN)
    if found != num_images:
        raise DataError(
            f"{source}: {found} image placeholder(s) for {num_images} image(s) in {instruction!r}; "
            f"write {IMAGE_TAG} where each picture belongs"
        )


def read_prompts(path: str, key: str) -> Sequence[str]:
    """Instructions of a text file, one a line, each with exactly one picture.

    Args:
        path: The file.
        key: Its key in the configuration, for messages.

    Raises:
        ConfigError: The file is missing or holds no prompt.
        DataError: A line without the placeholder, or with several.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{key}: prompt file {path} does not exist; set it by --options {key}=PATH")
    lines = file.read_text(encoding="utf-8").splitlines()
    prompts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(
            f"{key}: {path} holds no prompt; write one instruction a line, such as '{IMAGE_TAG} Describe it.'"
        )
    for number, prompt in prompts:
        check_placeholders(prompt, 1, f"{path}, line {number}")
    return [prompt for _, prompt in prompts]


OWN = "chat"
"""Name that stands for the language model's own template."""
TEMPLATES = {
    "vicuna0": Template("###Human: {} ###Assistant: ", "###"),
    # As MiniGPT-4's demo page wrote it: not quite what its projection was trained with.
    "vicuna0_demo": Template(
        "###Human: {}###Assistant: ",
        "###",
        system="Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it "
        "to you. Please answer my questions.",
    ),
    "llama2": Template(
        "[INST] {} [/INST] ",
        "</s>",
        with_system="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{} [/INST] ",
        joint=" </s><s>",
    ),
    "minigpt_v2": Template("[INST] {} [/INST]", "</s>"),
}
_PROBES = ("instruction one", "answer one", "instruction two", "answer two", "instruction three")


def configured_template(cfg: ModelConfig) -> Template:
    """The template of `model.template`, or else of `model.prompt_template` and `model.end_sym`.

    A pattern and end that belong to a named template bring its way of joining turns and of placing a system message.

    Raises:
        ConfigError: An unknown name, or a language model without a usable template of its own.
    """
    if cfg.template == OWN:
        template = own_template(Path(str(cfg.llama_model)))
    elif cfg.template is not None:
        if cfg.template not in TEMPLATES:
            hint = did_you_mean(cfg.template, [*TEMPLATES, OWN])
            raise ConfigError(f"model.template: no template '{cfg.template}'; {hint}")
        template = TEMPLATES[cfg.template]
    else:
        template = Template(cfg.prompt_template, cfg.end_sym)
        same = [known for known in TEMPLATES.values() if (known.pattern, known.end) == (template.pattern, template.end)]
        template = replace(same[0], system="") if same else template
    return replace(template, system=cfg.system) if cfg.system else template


def own_template(folder: Path) -> Template:
    """The chat template in a language model's folder (`tokenizer_config.json` or `chat_template.jinja`) as plain data.

    What the Jinja program writes around probes is taken as the patterns; so training, evaluation and chat need no
    program, and share one object.

    Raises:
        ConfigError: There is none, or it is no concatenation of turns.
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

    def write(texts: Sequence[str], system: str = "", asks: bool = True) -> str:
        roles = ("user", "assistant")
        said = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
        messages = [{"role": "system", "content": system}] * bool(system) + said
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        return text.removeprefix(tokenizer.bos_token or "")

    return _from_writer(write, f"model.template: the chat template in {folder}")


def _from_writer(write: Callable[..., str], source: str) -> Template:
    """A template that writes what `write` does.

    Raises:
        ConfigError: No template does.
    """
    question, answer, following, _, _ = _PROBES
    told, asked = write(_PROBES[:2], asks=False), write([question])
    # Some put a space between prompt and answer, which belongs to the prompt here: answers are stripped.
    gap = told.removeprefix(asked).split(answer)[0]
    gap = gap if gap.isspace() else ""
    joint = told.removeprefix(asked + gap + answer)
    rest = write(_PROBES[:3]).removeprefix(asked + gap + answer)
    template = Template(
        pattern=rest.removeprefix(joint).replace(following, "{}") + gap,
        end=joint.strip(),
        opening=asked.replace(question, "{}") + gap,
        with_system=_with_system(write, question, gap),
        joint=joint if rest.startswith(joint) else "",
    )
    turns = template.render(question) + answer + template.render_next(following) + _PROBES[3]
    if turns + template.render_next(_PROBES[4]) != write(_PROBES) + gap or not template.end:
        raise ConfigError(
            f"{source} writes earlier turns in another way than the newest; set model.prompt_template and "
            "model.end_sym instead"
        )
    return template


def _with_system(write: Callable[..., str], question: str, gap: str) -> str:
    """The opening behind a system message; empty where the template takes none."""
    from jinja2 import TemplateError

    try:
        written = write([question], system="system message")
    except TemplateError:
        return ""
    if "system message" not in written:
        return ""
    return written.replace("system message", "{system}").replace(question, "{}") + gap
