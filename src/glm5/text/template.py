"""Messages to the one text, or token stream, that the model reads: GLM's chat template.

The templates are data (`glm-5.jinja`, `glm-4.5.jinja`) and work unchanged in a checkpoint's `chat_template.jinja`. Here
they are rendered piece by piece, so that every piece is known to be either the template's own text or something a
person, a tool or a model wrote. `render_ids` encodes the two kinds apart: markers are special tokens only where the
template put them, and a web page that contains `<|user|>` cannot open a turn.

Thinking comes in three modes (GLM-5 report, section 3.1). Interleaved: thoughts since the last user message are shown.
Preserved: with `clear_thinking=False` all thoughts stay, and the text of a longer conversation extends that of a
shorter one, which keeps a prefix cache warm. Turn-level: `enable_thinking` decides for the next turn alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, NoReturn

import jinja2

from glm5.errors import UsageError
from glm5.text.markers import GENERATIONS, Generation
from glm5.text.messages import Message, Tool, check_conversation

if TYPE_CHECKING:
    from glm5.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text; only in template text are the names of special tokens those tokens."""

    text: str
    is_template: bool


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool = True,
    clear_thinking: bool = True,
    generation: Generation = "glm-5",
) -> str:
    """The conversation as text. To feed a model, use `render_ids`: plain text cannot tell markers from look-alikes.

    Args:
        tools: functions to offer, shown in a system block before everything else.
        add_generation_prompt: end with the beginning of the assistant's next turn.
        enable_thinking: whether that next turn thinks.
        clear_thinking: drop the thoughts of turns before the last user message (GLM-4.5 always does).
        generation: the layout, see `Generation`.

    Raises:
        UsageError: no messages, a tool message without its call, an unknown generation, or preserved thinking asked of
            GLM-4.5, which has none.
    """
    segments = render_segments(
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
        generation=generation,
    )
    return "".join(segment.text for segment in segments)


def render_ids(
    messages: Sequence[Message],
    tokenizer: "Tokenizer",
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool = True,
    clear_thinking: bool = True,
    generation: Generation = "glm-5",
) -> list[int]:
    """The conversation as token ids, in which no message can smuggle in a special token. Arguments as for `render`."""
    segments = render_segments(
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
        generation=generation,
    )
    return [i for segment in segments for i in tokenizer.encode(segment.text, allow_special=segment.is_template)]


def render_segments(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool,
    enable_thinking: bool,
    clear_thinking: bool,
    generation: Generation,
) -> list[Segment]:
    """The conversation as the longest stretches of template text and of written text. Arguments as for `render`."""
    check_conversation(messages)
    template = _compiled(generation)
    if generation == "glm-4.5" and not clear_thinking:
        raise UsageError(
            "clear_thinking=False: GLM-4.5 cannot keep the thoughts of earlier turns; use generation='glm-5'"
        )
    pieces = template.generate(
        messages=messages,
        tools=[tool.to_openai() for tool in tools or ()],
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
    )
    return list(_merged(pieces))


def template_source(generation: Generation = "glm-5") -> str:
    """The Jinja source, to be saved as a checkpoint's `chat_template.jinja`.

    Raises:
        UsageError: an unknown generation.
    """
    if generation not in GENERATIONS:
        raise UsageError(f"there is no chat template {generation!r}; choose one of {', '.join(GENERATIONS)}")
    return resources.files("glm5.text").joinpath(f"{generation}.jinja").read_text(encoding="utf-8")


class _Written(str):
    """What an expression of the template yielded, as against the template's own text."""

    __slots__ = ()

    def __str__(self) -> str:
        return self  # Jinja passes every expression through str(), which must not make plain text of it


def _merged(pieces: Iterator[str]) -> Iterator[Segment]:
    for is_template, group in groupby(pieces, key=lambda piece: not isinstance(piece, _Written)):
        text = "".join(group)
        if text:
            yield Segment(text, is_template)


@cache
def _compiled(generation: Generation) -> jinja2.Template:
    """The template in an environment that reads it just as `transformers.apply_chat_template` does."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, finalize=_Written)
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template_source(generation))


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"messages: {message}")
