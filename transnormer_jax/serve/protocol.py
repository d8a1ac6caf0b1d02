"""The requests of OpenAI's completions and chat that the server accepts.

A field of theirs that would change the answer, and that we do not know how to obey, is refused unless it has the value
that changes nothing; every other unknown field is ignored.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

# Field -> values that mean nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}

Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """Of a streamed answer.

    Attributes:
      include_usage: whether a last piece counts the tokens.
    """

    include_usage: bool = False


class GenerationRequest(BaseModel, extra="allow"):
    """What both kinds of request have in common.

    Attributes:
      model: its name; empty is the one that is served.
      temperature: 0 takes the likeliest token each time.
      top_p: only the nucleus of this probability.
      top_k: only the k likeliest tokens, 0 for all; not in OpenAI's protocol.
      repetition_penalty: above 1, tokens that were there become less likely; not in OpenAI's protocol.
      n: number of answers.
      stop: strings that end an answer.
      seed: of the first answer; the next has this plus 1. None: a random one.
      stream: whether to send the answer in pieces.
      stream_options: of these.
    """

    model: str = ""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32 - 16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        return (
            {name: value for name, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @model_validator(mode="after")
    def _nothing_unknown_that_matters(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value not in _NEUTRAL.get(name, (value,)):
                raise ValueError(f"{name} is not supported: leave it out")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(GenerationRequest):
    """A request to continue texts.

    Attributes:
      prompt: one or more texts, or lists of token ids.
      max_tokens: of each answer; 0 only with `echo`.
      logprobs: tell the log-probability of each token, and of so many likeliest ones.
      echo: whether the answer begins with the prompt.
    """

    # One wrong element is enough: the errors of a list of millions would take seconds and gigabytes.
    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _something_to_answer(self) -> Self:
        if isinstance(self.prompt, list) and not self.prompt:
            raise ValueError("prompt holds nothing")
        if not self.max_tokens and not self.echo:
            raise ValueError("max_tokens is 0: give a positive number, or echo the prompt")
        return self


class TextPart(BaseModel):
    """A part of a message, which may only be text."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat: `content` is text, or a list of parts of text."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    def as_text(self) -> dict[str, str]:
        """The message with its parts joined."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatRequest(GenerationRequest):
    """A request to answer in a chat.

    Attributes:
      messages: what was said.
      max_tokens: of the answer; None is as many as the server allows.
      max_completion_tokens: the newer name of it.
      logprobs: whether to tell the log-probability of each token.
      top_logprobs: how many of the likeliest tokens are returned with it.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
