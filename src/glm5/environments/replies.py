"""What can be wrong with a reply before anybody looks at the answer.

A fault in the form ends the rollout with reward 0 and evidence that says so (the format penalty that GLM-5 inherits
from GLM-4.5, section 3.3.2 there): a call that cannot be read, a call of a tool that was not offered, a reply that was
cut or is empty.
"""

from collections.abc import Sequence

from glm5.agents.endpoint import EndpointError, Reply
from glm5.environments.base import Reward
from glm5.text.markers import Marker
from glm5.text.messages import Tool


def format_error(reply: Reply, tools: Sequence[Tool] = ()) -> str | None:
    """What is wrong with the form of a reply, in a sentence; None when it is an answer or sound calls of `tools`.

    Raises:
        EndpointError: the endpoint gave the reply up.
    """
    message = reply.message
    match reply.finish_reason:
        case "abort" | "error":
            raise EndpointError(f"the endpoint gave the reply up ({reply.finish_reason})")
        case "length":
            return f"the reply was cut after {reply.completion_tokens} tokens"
        case "repetition":
            return "the reply ran in circles"
    if Marker.TOOL_CALL in message.content:
        return f"a malformed tool call: {message.content[:200]!r}"
    offered = {tool.name: tool for tool in tools}
    for call in message.tool_calls:
        if call.name not in offered:
            return f"a call of {call.name!r}, which is no tool here; the tools are: {', '.join(offered) or 'none'}"
        if missing := set(offered[call.name].parameters.get("required", ())) - call.arguments.keys():
            return f"a call of {call.name!r} without {', '.join(sorted(missing))}"
    if not message.tool_calls and not message.content.strip():
        return "no answer"
    return None


def format_fault(problem: str) -> Reward:
    """The grade of a reply whose form is wrong."""
    return Reward(0.0, {"format": 0.0, "answer": 0.0}, problem)


def verdict(correct: bool, evidence: str) -> Reward:
    """The grade of a well-formed answer: binary, as all rewards of reasoning tasks (GLM-5 report, section 3.2)."""
    return Reward(float(correct), {"format": 1.0, "answer": float(correct)}, evidence)
