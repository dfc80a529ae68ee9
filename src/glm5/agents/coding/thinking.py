"""When the model is asked to think: always, never, or by a rule, turn by turn.

GLM-5 thinks interleaved with its calls, and its thoughts are sent back exactly as they came (preserved thinking); the
switch is per turn. Looking things up needs no thought, deciding what they mean does.
"""

from typing import Literal

from glm5.agents.loop import ThinkingRule
from glm5.agents.view import View
from glm5.errors import UsageError

Thinking = Literal["model", "on", "off", "auto"]
THINKING: tuple[Thinking, ...] = ("model", "on", "off", "auto")
_LOOKUPS = {"read", "search"}
_LOOKUPS_IN_A_ROW = 2  # after which a thought is due, so that looking does not go on for ever


def thinking_rule(name: Thinking) -> ThinkingRule:
    """`model` leaves it to the endpoint. Raises UsageError for an unknown name."""
    match name:
        case "model":
            return lambda view: None
        case "on":
            return lambda view: True
        case "off":
            return lambda view: False
        case "auto":
            return _auto
    raise UsageError(f"there is no rule {name!r} for thinking; known are {', '.join(THINKING)}")


def _auto(view: View) -> bool:
    """Off right after a lookup, on otherwise."""
    lookups = 0
    for shown in reversed(view.shown):
        if shown.message.role == "assistant":
            names = {call.name for call in shown.message.tool_calls}
            if not names or not names <= _LOOKUPS:
                break
            lookups += 1
        elif shown.message.role != "tool":
            break
    return not 0 < lookups <= _LOOKUPS_IN_A_ROW
