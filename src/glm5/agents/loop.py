"""The loop: the same in training, in benchmarks and at a person's desk.

        ┌──────────────────────────── limits, circles, context ─────────────────────────┐
        v                                                                               │
    view of the log ──> endpoint ──> reply ──> each call: guard ──> tool ──> what really changed
                                       │                                                │
                                       └─ no call: told so                  finish: Ending with its evidence

Everything that happens is an event in the log before anything follows from it, so a run can go on from any point,
also from a call that was never answered. Whatever happens, `run` gives an `Ending` with a named status.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from glm5.agents.context import ContextManager, KeepAll, reminder
from glm5.agents.endpoint import Endpoint, EndpointError, Reply
from glm5.agents.events import Decided, Ended, Entry, Event, EventLog, Observed, Replied, Said, Started
from glm5.agents.guard.gate import Guard
from glm5.agents.limits import Budget, packaged
from glm5.agents.outcomes import Ending, Result, Status
from glm5.agents.person import Nobody, Person
from glm5.agents.stuck import StuckDetector
from glm5.agents.tools.base import AgentTool, Desk, check_arguments
from glm5.agents.view import View
from glm5.errors import GLM5Error, UsageError
from glm5.sandbox import SandboxError
from glm5.text.markers import Marker
from glm5.text.messages import Message, ToolCall

ThinkingRule = Callable[[View], bool | None]
REFUSED = (
    "Refused: {reason}.{words} This is a decision, not an obstacle: other ways to the same effect are refused too. Go "
    "on without it, or call finish and say what is missing."
)
NUDGE = "You are going round in circles: {trouble}. Stop, say what you have learned, and try something different."
NO_CALL = "Your message held no tool call. Go on with the work, or call finish."
MALFORMED = "Your message held a tool call that could not be read: {what}. Nothing was run. Write the call again."
CUT = "Your message was cut after {tokens} tokens, before a call was complete. Nothing was run. Be shorter."


class Agent:
    """One model at work on one task.

    Attributes:
        log: everything that happened.
        view: what the model sees of it.
        thinking: asks for a thought or for none before each turn; may be replaced while the agent runs.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tools: Sequence[AgentTool],
        desk: Desk,
        log: EventLog,
        guard: Guard,
        budget: Budget,
        context: ContextManager | None = None,
        person: Person | None = None,
        thinking: ThinkingRule = lambda view: None,
        recollect: Callable[[ToolCall], str] = lambda call: "",
    ) -> None:
        """
        Args:
            log: a new one that holds the first words, or an older one to go on with.
            recollect: what is remembered about a call that failed in an earlier run; "" for nothing.
        """
        self.log, self.view, self.thinking = log, View(log.entries), thinking
        self._endpoint, self._desk, self._guard, self._budget = endpoint, desk, guard, budget
        self._tools = {tool.spec.name: tool for tool in tools}
        self._context, self._person = context or KeepAll(), person or Nobody()
        self._recollect = recollect
        self._stuck = StuckDetector()
        self._nudges = 0
        self._restarts = 0  # since the tree changed last

    async def run(self) -> Ending:
        """Work until there is an ending, and record it. Cancelling it records that too, and goes on being cancelled."""
        try:
            ending = await self._work()
        except EndpointError as error:
            ending = Ending(Status.ENDPOINT_FAILED, str(error), changed=self._desk.changed())
        except SandboxError as error:
            ending = Ending(Status.SANDBOX_FAILED, str(error), changed=self._desk.changed())
        except asyncio.CancelledError:
            self._record(_ended(Ending(Status.INTERRUPTED, "interrupted by a person", changed=self._desk.changed())))
            raise
        self._record(_ended(ending))
        return ending

    async def _work(self) -> Ending:
        ending = await self._answer_calls()  # those that an earlier process left open
        while ending is None:
            ending = self._over_limit() or await self._out_of_circle() or await self._make_room()
            if ending is None:
                ending = await self._turn()
        return ending

    async def _turn(self) -> Ending | None:
        thinking, began = self.thinking(self.view), time.monotonic()
        specs = [tool.spec for tool in self._tools.values()]
        reply = await self._endpoint.chat(self.view.messages, specs, thinking=thinking)
        if reply.finish_reason in ("abort", "error"):
            raise EndpointError(f"the endpoint gave the reply up ({reply.finish_reason})")
        message = _with_ids(reply.message, len(self.log.entries))
        self._budget.spend(reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
        seconds = round(time.monotonic() - began, 3)
        self._record(
            Replied(
                message, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens,
                seconds, thinking,
            )
        )  # fmt: skip
        self._stuck.saw_turn(message, Marker.TOOL_CALL in message.content)
        if message.tool_calls:
            return await self._answer_calls()
        self._say(_why_no_call(reply), "no call")
        return None

    async def _answer_calls(self) -> Ending | None:
        self._desk.outputs.begin_step()
        for call in list(self.view.open_calls):
            began = time.monotonic()
            result = await self._call(call)
            tool = self._tools.get(call.name)
            self._stuck.saw_result(call, result, tool is not None and tool.is_waiting(call.arguments))
            shown = self._desk.outputs.shorten(result.text)
            seconds = round(time.monotonic() - began, 3)
            self._record(
                Observed(call.id, call.name, shown.text, result.status, result.exit_code, seconds, shown.handle)
            )
            if result.ending is not None:
                return result.ending
        return None

    async def _call(self, call: ToolCall) -> Result:
        tool = self._tools.get(call.name)
        if tool is None:
            return Result(f"there is no tool {call.name!r}; the tools are: {', '.join(self._tools)}", "malformed")
        try:
            check_arguments(call, tool.spec)
        except UsageError as error:
            return Result(str(error), "malformed")
        if memory := self._recollect(call):
            return Result(memory, "refused")
        approved = False
        verdict = self._guard.judge(call)
        if verdict.action != "allow":
            answer = await self._person.approve(call, verdict) if verdict.action == "ask" else None
            approved = answer is not None and answer.allowed
            by = "person" if answer is not None and answer.by_person else "harness"
            kinds = [effect.kind for effect in verdict.effects]
            self._record(Decided(call.id, "allow" if approved else "deny", by, verdict.reason, kinds))  # type: ignore[arg-type]
            if not approved:
                self._guard.remember_denial(verdict)
                words = f" {answer.words}." if answer is not None and answer.words else ""
                return Result(REFUSED.format(reason=verdict.reason, words=words), "refused")
        result = await self._run(tool, call)
        if tool.writes:
            result = self._look_after(result, approved)
            self._desk.seal()
        return result

    async def _run(self, tool: AgentTool, call: ToolCall) -> Result:
        left = self._budget.seconds_left()
        try:
            return await asyncio.wait_for(tool.run(call.arguments, self._desk), left if left < 1e9 else None)
        except TimeoutError:
            return Result("[ended: the time for all of the work is over]", "failed")
        except SandboxError as error:
            await self._desk.workspace.run("true", packaged("tool")["seconds"])  # raises if it is the sandbox itself
            return Result(str(error), "failed")
        except GLM5Error as error:
            return Result(str(error), "failed")

    def _look_after(self, result: Result, approved: bool) -> Result:
        for event in self._guard.look_after(approved):
            self._record(event)
            if event.kind == "saved":
                self._restarts = 0
            else:
                undone = ", ".join(line[2:] for line in event.changed[:10])
                text = f"{result.text}\n[set back by the harness, because {event.reason}: {undone}]"  # type: ignore[union-attr]
                result = Result(text, "refused", result.exit_code, result.ending)
        return result

    def _over_limit(self) -> Ending | None:
        exceeded = self._budget.exceeded()
        return None if exceeded is None else Ending(*exceeded, changed=self._desk.changed())

    async def _out_of_circle(self) -> Ending | None:
        """Nudge, then ask, then stop."""
        trouble = self._stuck.circle()
        if not trouble:
            return None
        self._stuck.forget()
        self._nudges += 1
        if self._nudges == 1:
            self._say(NUDGE.format(trouble=trouble), "stuck")
            return None
        if advice := await self._person.advise(trouble):
            self._record(Said(Message("user", advice), "person"))
            self._nudges = 0
            return None
        return Ending(Status.STUCK, f"going round in circles: {trouble}", changed=self._desk.changed())

    async def _make_room(self) -> Ending | None:
        folded = await self._context.fold(self.view)
        if folded is None:
            return None
        if folded.restart:
            self._restarts += 1
            if self._restarts > packaged("context")["restarts_in_a_row"]:
                why = f"the history was dropped {self._restarts - 1} times without a change of the files in between"
                return Ending(Status.CONTEXT_FULL, why, changed=self._desk.changed())
        self._record(folded)
        if folded.restart:
            self._stuck.forget()
            task = next((e.event.task for e in self.log.entries if isinstance(e.event, Started)), "")
            denied = [denied.what for denied in self._guard.denied]
            self._say(reminder(task, self._desk.plan, denied, self._desk.changed()), "restart")
        return None

    def _say(self, text: str, reason: str) -> None:
        self._record(Said(Message("user", text), "harness", reason))

    def _record(self, event: Event) -> Entry:
        entry = self.log.append(event)
        self.view.apply(entry)
        return entry


def _with_ids(message: Message, number: int) -> Message:
    """Calls without an id, or with one that is not unique in the turn, get one: it is what links their results."""
    ids = [call.id for call in message.tool_calls]
    if all(ids) and len(set(ids)) == len(ids):
        return message
    calls = tuple(
        ToolCall(call.name, call.arguments, f"call-{number}-{i}") for i, call in enumerate(message.tool_calls)
    )
    return Message(message.role, message.content, message.reasoning_content, calls)


def _why_no_call(reply: Reply) -> str:
    content = reply.message.content
    if reply.finish_reason == "length":
        return CUT.format(tokens=reply.completion_tokens)
    if Marker.TOOL_CALL in content:
        return MALFORMED.format(what=repr(content[content.index(Marker.TOOL_CALL) :][:200]))
    return NO_CALL


def _ended(ending: Ending) -> Ended:
    return Ended(
        str(ending.status), ending.summary, ending.evidence, ending.test_command, ending.exit_code, ending.changed
    )
