"""How a request says whether and how long to think, and the budget that ends a thought.

Three modes (GLM-5 report, section 3.1): interleaved thinking is the default; preserved thinking keeps the thoughts of
all turns (`clear_thinking: false`); turn-level thinking switches it for each request (`enable_thinking`, or
`thinking.type`). A budget bounds the thought in tokens by forcing `</think>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm5.errors import UsageError
from glm5.text.markers import Marker

if TYPE_CHECKING:
    from glm5.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ThinkingOptions:
    """What a request asks for; the first two are arguments of `template.render`."""

    enable_thinking: bool = True
    clear_thinking: bool = True
    budget: int | None = None  # tokens of thought in this turn; None for no bound

    @classmethod
    def from_request(cls, body: Mapping[str, Any]) -> "ThinkingOptions":
        """Read a chat completion request in either spelling, and `thinking_token_budget`.

        The spellings are `thinking: {type: enabled|disabled, clear_thinking}` (Z.ai) and
        `chat_template_kwargs: {enable_thinking, clear_thinking}` (self-hosted servers).

        Raises:
            UsageError: a value of the wrong type, or two spellings that contradict each other.
        """
        hosted = _object(body, "thinking")
        template = _object(body, "chat_template_kwargs")
        kind = hosted.get("type")
        if kind not in (None, "enabled", "disabled"):
            raise UsageError(f"thinking.type must be 'enabled' or 'disabled', not {kind!r}")
        budget = body.get("thinking_token_budget")
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 0):
            raise UsageError(f"thinking_token_budget must be a number of tokens, 0 or more, not {budget!r}")
        return cls(
            enable_thinking=_agreed("enable_thinking", None if kind is None else kind == "enabled", template),
            clear_thinking=_agreed("clear_thinking", hosted.get("clear_thinking"), template),
            budget=budget,
        )


class ThinkingBudget:
    """Bounds the tokens of thought in one turn.

    Before sampling each token the engine asks `forced`; after it, it tells `observe`. The thought ends at `</think>` or
    where a tool call begins; a turn that thinks again spends from the same budget.
    """

    def __init__(self, limit: int, tokenizer: "Tokenizer", *, thinking: bool = True) -> None:
        """Start a turn with `limit` tokens of thought; `thinking` when the prompt has already opened one.

        Raises:
            UsageError: `limit` is negative, or the tokenizer has no tokens that begin and end a thought.
        """
        if limit < 0:
            raise UsageError(f"the thinking budget is {limit} tokens; it must be 0 or more")
        if missing := {Marker.THINK, Marker.END_THINK} - tokenizer.special_ids.keys():
            raise UsageError(
                f"a thinking budget needs a tokenizer with the special tokens {', '.join(sorted(missing))}"
            )
        self._left = limit
        self._think = tokenizer.special_ids[Marker.THINK]
        self._end_think = tokenizer.special_ids[Marker.END_THINK]
        self._ends = {self._end_think, tokenizer.special_ids.get(Marker.TOOL_CALL)}
        self._is_thinking = thinking

    @property
    def forced(self) -> int | None:
        """The id of `</think>` when it must come next, else None."""
        return self._end_think if self._is_thinking and self._left == 0 else None

    def observe(self, token_id: int) -> None:
        """Account for the next token of the turn."""
        if token_id == self._think:
            self._is_thinking = True
        elif token_id in self._ends:
            self._is_thinking = False
        elif self._is_thinking:
            self._left = max(0, self._left - 1)


def _object(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{key} must be an object, not {value!r}")
    return value


def _agreed(key: str, hosted: Any, template: Mapping[str, Any]) -> bool:
    """The value that the spellings agree on; True, the default of both switches, when neither is there."""
    given = [value for value in (hosted, template.get(key)) if value is not None]
    for value in given:
        if not isinstance(value, bool):
            raise UsageError(f"{key} must be true or false, not {value!r}")
    if len(set(given)) > 1:
        raise UsageError(f"{key}: `thinking` and `chat_template_kwargs` contradict each other; send one of them")
    return given[0] if given else True
