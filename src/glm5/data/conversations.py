"""Files of supervised fine-tuning: one conversation, or one recorded rollout, a line (GLM-5 report §3.1).

    {"messages": [...], "tools": [...], "thinking": "preserved"}     OpenAI messages, rendered with our chat template
    {"turns": [{"prompt_ids": [...], "ids": [...]}], "reward": 1.0}  token ids as an engine made them, never re-rendered

`thinking` is how the conversation was held: "interleaved" (thoughts are shown until the next user message),
"preserved" (they stay) or "off" (there are none). An assistant message may carry `"thinking": true/false`, which
decides for its turn alone, and `"train": false`, which marks an error: it stays in the context and is not learned, so
that the model learns the recovery and not the mistake.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from glm5.errors import GLM5Error, UsageError
from glm5.text.markers import Marker
from glm5.text.messages import Message, Tool, conversation_from_openai

Thinking = Literal["interleaved", "preserved", "off"]
_OWN_END = ("stop", "tool_calls")  # finish reasons of a turn that the model itself ended


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a file as it was read, and where: `chat.jsonl:7`."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as they were held.

    Attributes:
        messages: an assistant's `reasoning_content` is None exactly where its turn was sampled without thinking.
        keeps_thoughts: whether the thoughts of earlier turns were shown (`clear_thinking=False`).
        learned: for each message, whether it is an assistant's and to be learned.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    keeps_thoughts: bool
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One generation of a rollout: the exact prompt, what was sampled (its stop token included), and whether it may be
    learned."""

    prompt_ids: list[int]
    ids: list[int]
    learned: bool


@dataclass(frozen=True, slots=True)
class Rollout:
    """The generations of a recorded trajectory in order of arrival; `reward` is None where it failed."""

    turns: tuple[RecordedTurn, ...]
    reward: float | None


def read_lines(path: Path) -> Iterator[Line]:
    """The records of a `.jsonl` or `.parquet` file.

    Raises:
        UsageError: there is no such file, it is empty, or a line is not a JSON object; names file and line.
        GLM5Error: a Parquet file without the package that reads it.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give a .jsonl or .parquet file of conversations")
    found = False
    for number, values in enumerate(_table(path) if path.suffix == ".parquet" else _json_lines(path), start=1):
        if values is None:
            continue
        if not isinstance(values, dict):
            raise UsageError(f"{path}:{number}: expected one JSON object a line, not {type(values).__name__}")
        found = True
        yield Line(f"{path}:{number}", values)
    if not found:
        raise UsageError(f"{path} is empty: there is nothing to train on")


def read_record(line: Line, thinking: Thinking = "interleaved") -> Conversation | Rollout:
    """What a line holds.

    Args:
        thinking: mode of a conversation that names none.

    Raises:
        UsageError: it is neither kind, or malformed; begins with file and line.
    """
    try:
        if "messages" in line.values:
            return _conversation(line.values, thinking)
        if "turns" in line.values:
            return _rollout(line.values)
        raise UsageError(
            "expected 'messages' (a conversation) or 'turns' (a recorded rollout), found "
            + (", ".join(map(repr, line.values)) or "nothing")
        )
    except UsageError as error:
        raise UsageError(f"{line.where}: {error}") from None


# -- conversations ---------------------------------------------------------------------------------------------------


def _conversation(values: Mapping[str, Any], thinking: Thinking) -> Conversation:
    mode = values.get("thinking") or thinking
    if mode not in get_args(Thinking):
        raise UsageError(f"thinking must be one of {', '.join(get_args(Thinking))}, not {mode!r}")
    raw = _list(_parsed(values["messages"]), "messages")
    given_tools = _list(_parsed(values.get("tools")) or [], "tools")
    tools = tuple(Tool.from_openai(tool, f"tools[{i}]") for i, tool in enumerate(given_tools))
    flags = [_flags(message, f"messages[{i}]") for i, message in enumerate(raw)]
    # Tool results may be put into the order of their calls; assistant messages, which have the flags, stay in place.
    messages = conversation_from_openai(raw)
    learned = tuple(m.role == "assistant" and train for m, (train, _) in zip(messages, flags, strict=True))
    if not any(message.role == "assistant" for message in messages):
        raise UsageError("no message is the assistant's, so there is nothing to learn")
    if not any(learned):
        raise UsageError('every assistant message has "train": false, so there is nothing to learn; leave it out')
    held = tuple(_held(m, mode, thinks) for m, (_, thinks) in zip(messages, flags, strict=True))
    return Conversation(held, tools, mode == "preserved", learned)


def _flags(message: Any, where: str) -> tuple[bool, bool | None]:
    """A message's `train` and `thinking`."""
    if not isinstance(message, dict):
        raise UsageError(f"{where} must be an object, not {type(message).__name__}")
    for key in ("train", "thinking"):
        value = message.get(key)
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"{where}: {key} must be true or false, not {value!r}")
        if value and message.get("role") != "assistant":
            raise UsageError(f"{where}: {key} is for assistant messages only, not {message.get('role')!r}")
    return message.get("train") is not False, message.get("thinking")


def _held(message: Message, mode: Thinking, thinks: bool | None) -> Message:
    """The message as its turn was sampled: with a thought, which may be empty, or without one."""
    if message.role != "assistant":
        return message
    reasoning, content = message.reasoning_content, message.content
    if reasoning is None and Marker.END_THINK in content:  # as the chat template reads it
        reasoning, content = content.split(Marker.END_THINK, 1)
        reasoning = reasoning.replace(Marker.THINK, "", 1)
    if thinks is None:
        thinks = mode != "off" and reasoning is not None
    return replace(message, content=content, reasoning_content=(reasoning or "") if thinks else None)


# -- rollouts --------------------------------------------------------------------------------------------------------


def _rollout(values: Mapping[str, Any]) -> Rollout:
    turns = []
    for number, turn in enumerate(_list(values["turns"], "turns")):
        where = f"turns[{number}]"
        if not isinstance(turn, dict):
            raise UsageError(f"{where} must be an object, not {type(turn).__name__}")
        ids = _ids(turn, "ids", where)
        own_end = turn.get("finish_reason") in _OWN_END
        turns.append(RecordedTurn(_ids(turn, "prompt_ids", where), ids, learned=own_end and bool(ids)))
    reward = values.get("reward")
    if reward is not None and (not isinstance(reward, int | float) or isinstance(reward, bool)):
        raise UsageError(f"reward must be a number, not {reward!r}")
    return Rollout(tuple(turns), None if values.get("failure") or reward is None else float(reward))


def _ids(turn: Mapping[str, Any], key: str, where: str) -> list[int]:
    ids = turn.get(key)
    if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise UsageError(f"{where}: {key} must be a list of token ids")
    return ids


# -- files -----------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Any]:
    """The value of every line; None for an empty one."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line) if line.strip() else None
                except json.JSONDecodeError as error:
                    raise UsageError(f"{path}:{number}: this is not JSON: {error}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error}") from None


def _table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise GLM5Error(f"reading {path} needs the package pyarrow: pip install pyarrow") from error
    for batch in parquet.ParquetFile(path).iter_batches():
        # A column holds a key for every row; where a row had none, it says null.
        yield from ({key: v for key, v in row.items() if v is not None} for row in batch.to_pylist())


def _parsed(value: Any) -> Any:
    """Nested values of a table are often stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise UsageError(f"expected a list, or the JSON of one: {error}") from None


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{name} must be a list, not {type(value).__name__}")
    return value
