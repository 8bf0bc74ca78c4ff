"""The processor of an exported model: images, the chat template, and the image's place in a prompt.

`Blip2Processor` puts the image in front of the prompt and loses a chat template. `LlavaProcessor` puts it where its
token is: with one "patch" as large as the image and the other queries as additional tokens, it makes Q of each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.template import IMAGE_TAG, Template

if TYPE_CHECKING:
    from minigpt4.models.vision import VisionEncoder

_CONTENT = """
{%- macro written(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- set texts = content | selectattr("type", "equalto", "text") | map(attribute="text") | join -%}
    {%- for part in content -%}
      {%- if part.type == "text" -%}
        {{- part.text -}}
      {%- elif part.type != "image" -%}
        {{- raise_exception("A message has parts of the types text and image, not " ~ part.type) -}}
      {%- elif PLACEHOLDER not in texts -%}
        {{- (" " if loop.previtem is defined and loop.previtem.type == "text" else "") ~ TAG -}}
        {{- "" if loop.last else " " -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
_TURNS = """
{%- set chat = namespace(system=SYSTEM, turns=0) -%}
{{- bos_token if BOS else "" -}}
{%- for message in messages -%}
  {%- if message.role == "system" and loop.first -%}
    {%- set chat.system = written(message.content) -%}
  {%- elif message.role == "user" and (chat.turns == 0 or loop.previtem.role == "assistant") -%}
    {%- if chat.turns == 0 and chat.system -%}
      {{- SYSTEM_BEFORE | replace("{system}", chat.system) ~ written(message.content) ~ SYSTEM_AFTER -}}
    {%- elif chat.turns == 0 -%}
      {{- FIRST_BEFORE ~ written(message.content) ~ FIRST_AFTER -}}
    {%- elif ONE_TURN -%}
      {{- raise_exception("This model tokenises each turn alone, which a chat template cannot: ask one question.") -}}
    {%- else -%}
      {{- NEXT_BEFORE ~ written(message.content) ~ NEXT_AFTER -}}
    {%- endif -%}
    {{- THOUGHT if loop.last else "" -}}
    {%- set chat.turns = chat.turns + 1 -%}
  {%- elif message.role == "assistant" and loop.previtem is defined and loop.previtem.role == "user" -%}
    {{- written(message.content) | replace(PLACEHOLDER, "") -}}
    {{- END if loop.last and not add_generation_prompt else "" -}}
  {%- else -%}
    {{- raise_exception("Questions (user) and answers (assistant) take turns, perhaps behind one system message.") -}}
  {%- endif -%}
{%- endfor -%}
"""


def chat_template(template: Template, *, bos: bool) -> str:
    """A template as the Jinja program that writes the same prompts.

    An image stands where its part of a message is, apart from the text beside it by a space, unless the text has
    `<Img><ImageHere></Img>` at its place; a message's system text replaces the template's own.

    Args:
        template: the template.
        bos: whether prompts begin with the token for the beginning of a sequence.
    """
    first, following = template.opening_pattern.split("{}"), template.render_next("{}").split("{}")
    with_system = (template.system_pattern or "{system}" + template.opening_pattern).split("{}")
    values: dict[str, Any] = {
        "TAG": IMAGE_TAG,
        "PLACEHOLDER": IMAGE_TOKEN,
        "SYSTEM": template.system,
        "SYSTEM_BEFORE": with_system[0],
        "SYSTEM_AFTER": with_system[1],
        "FIRST_BEFORE": first[0],
        "FIRST_AFTER": first[1],
        "NEXT_BEFORE": following[0],
        "NEXT_AFTER": following[1],
        "END": template.end,
        "THOUGHT": template.thought,
        "BOS": bos,
        "ONE_TURN": template.in_pieces,
    }
    constants = "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in values.items()
    )
    return constants + _CONTENT.lstrip() + _TURNS.lstrip()


def build_processor(tokenizer: Any, template: Template, vision: VisionEncoder, num_queries: int, *, bos: bool) -> Any:
    """The processor.

    Args:
        tokenizer: from `fast_tokenizer`.
        template: template of every prompt.
        vision: the model's encoder, whose images it prepares.
        num_queries: tokens of an image (Q).
        bos: as for `chat_template`.
    """
    from transformers import BlipImageProcessor, LlavaProcessor

    return LlavaProcessor(
        BlipImageProcessor(
            size={"height": vision.image_size, "width": vision.image_size},
            image_mean=list(vision.statistics.mean),
            image_std=list(vision.statistics.std),
        ),
        tokenizer,
        patch_size=vision.image_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=num_queries - 1,
        chat_template=chat_template(template, bos=bos),
    )
