"""Requests and answers of OpenAI's chat completions, as far as they mean something here; what else is sent is ignored.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from minigpt4.common.schema import GenerationConfig, override_generation

MAX_MESSAGES = 10_000
"""More messages than any context has room for: a request of 20 MB could have half a million, which take ten seconds."""
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 200
HOTTEST = 2.0
"""Highest temperature."""
KIND_IN_PLACE = 4
"""Index of a part's kind in ("messages", 0, "content", 1, "text", "text"), where pydantic finds a fault."""
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


def _listed(value: Any) -> Any:
    """One of what may also be a list; null is an empty one."""
    return [value] if isinstance(value, str) else [] if value is None else value


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else _listed(content)


def _url(image: Any) -> Any:
    return {"url": image} if isinstance(image, str) else image


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ImageUrl(_Model):
    """Where an image is."""

    url: str


class TextPart(_Model):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Model):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_url)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Model):
    """One message of a conversation; its content may be written as a text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts)] = Field(default_factory=list)


class StreamOptions(_Model):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class ChatRequest(_Model):
    """A request for the next answer of a conversation."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=HOTTEST)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Annotated[list[StopText], Field(max_length=MAX_STOPS), BeforeValidator(_listed)] = Field(default_factory=list)
    seed: int | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def generation(self, defaults: GenerationConfig, room: int) -> GenerationConfig:
        """Generation settings.

        Args:
            defaults: what holds where the request says nothing.
            room: most tokens of an answer; a request for more gets these.
        """
        wanted = self.max_completion_tokens or self.max_tokens or defaults.max_new_tokens
        values: dict[str, Any] = {"max_new_tokens": max(1, min(wanted, room))}
        values["min_new_tokens"] = min(defaults.min_new_tokens, values["max_new_tokens"])
        if self.temperature is not None:
            values |= {"do_sample": self.temperature > 0, "num_beams": 1}
        elif self.top_p is not None:
            values |= {"do_sample": True, "num_beams": 1}
        if values.get("do_sample"):
            values |= {"temperature": 1.0 if self.temperature is None else self.temperature, "top_p": self.top_p or 1.0}
        return override_generation(defaults, values)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: It is no JSON, or not such a request.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # pydantic names the kind of a part as well, in front of the part's own fields
        place = ".".join(str(part) for number, part in enumerate(first["loc"]) if number != KIND_IN_PLACE)
        raise RequestError(f"{place}: {first['msg']}" if place else first["msg"], param=place or None) from error


class RequestError(Exception):
    """What is answered in place of an answer.

    Args:
        message: what is wrong, and what to do.
        status: HTTP status.
        param: the part of the request that it is about.
        code: short name of the error, for programs.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.content = error_content(str(message), status, param, code)


def error_content(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error.

    Args:
        message: what is wrong, and what to do.
        status: HTTP status.
        param: the part of the request that it is about.
        code: short name of the error, for programs.
    """
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(prompt: int, answer: int) -> dict[str, int]:
    """The numbers of tokens of a prompt, with its images, and its answer."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def completion(
    identity: str, created: int, model: str, text: str, finish: str, tokens: dict[str, int]
) -> dict[str, Any]:
    """An answer.

    Args:
        identity: name of the answer.
        created: when it was asked for, in seconds since 1970.
        model: name of the model.
        text: the answer.
        finish: why it ended.
        tokens: from `usage`.
    """
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": tokens,
    }


def chunk(identity: str, created: int, model: str, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """A part of a streamed answer.

    Args:
        identity: name of the answer.
        created: when it was asked for, in seconds since 1970.
        model: name of the model.
        delta: what is new.
        finish: why the answer ended; None: it has not.
    """
    return {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
