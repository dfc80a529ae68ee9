"""The JSON of a call's arguments, written fragment by fragment while the call is still being read.

A declared string goes out as it comes; any other value waits until it is complete, because only then is its type known.
"""

import json
from typing import Any

from glm5.text.values import STRING, argument_types, argument_value


class ArgumentsWriter:
    """Each method returns the next fragment; together they are one JSON object, in which a key may come twice."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        """Start a call of a tool with the JSON schema `parameters`, empty when it is not known."""
        self._parameters = parameters
        self._is_empty = True
        self._key = ""
        self._types: frozenset[str] = frozenset()
        self._held: list[str] = []

    def open_value(self, key: str) -> str:
        """Begin the pair of `key`."""
        self._key, self._types = key, argument_types(self._parameters, key)
        lead = "{" if self._is_empty else ", "
        self._is_empty = False
        return f"{lead}{json.dumps(key, ensure_ascii=False)}: " + ('"' if self._types == STRING else "")

    def add(self, text: str) -> str:
        """Take more of the value's text."""
        if self._types == STRING:
            return json.dumps(text, ensure_ascii=False)[1:-1]
        self._held.append(text)
        return ""

    def close_value(self) -> str:
        """End the pair."""
        if self._types == STRING:
            return '"'
        return json.dumps(argument_value(self.take_held(), self._parameters, self._key), ensure_ascii=False)

    def end(self) -> str:
        """End the object."""
        return "{}" if self._is_empty else "}"

    def take_held(self) -> str:
        """The text of an open value that is in no fragment yet."""
        held, self._held = "".join(self._held), []
        return held
