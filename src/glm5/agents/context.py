"""Context managers: what of the history the model keeps seeing when it grows too long (GLM-5 report, section 4.2.4).

    keep-recent   results of all but the last k rounds are left out; thoughts and calls stay
    discard-all   when a prompt passes T tokens, all of the history is dropped but system and task
    hybrid        both: keep-recent always, discard-all above T
    summary       as discard-all, but the model first writes down what it knows

Only the view gets shorter; the log keeps everything. The report does not say what a restart keeps or whether it
repeats: here system and task stay, and it repeats each time. What must not be forgotten with the history (the plan,
what was denied, what has changed) is told again by the harness.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from glm5.agents.endpoint import Endpoint
from glm5.agents.events import Folded
from glm5.agents.limits import packaged
from glm5.agents.view import LEFT_OUT, View
from glm5.errors import UsageError
from glm5.text.messages import Message

Kind = Literal["none", "keep-recent", "discard-all", "hybrid", "summary"]
KINDS: tuple[Kind, ...] = ("none", "keep-recent", "discard-all", "hybrid", "summary")
SUMMARY_REQUEST = (
    "The conversation is about to be cut to save space. Write down everything that the work needs from here on: what "
    "was found out and where, what was changed, what was tried and failed and why, and what comes next. Make no call."
)


class ContextManager(Protocol):
    """Decides, before each turn, whether and how the view gets shorter."""

    async def fold(self, view: View) -> Folded | None:
        """What to leave out now; None for nothing."""


class KeepAll:
    """Nothing is ever left out."""

    async def fold(self, view: View) -> Folded | None:
        """Nothing."""
        return None


class KeepRecent:
    """The results of the last `k` rounds stay.

    Folding ends the cached prefix at the first result that changes, so it is done for `batch` rounds at once: between
    `k` and `k + batch - 1` rounds are seen whole.
    """

    def __init__(self, k: int | None = None, batch: int | None = None) -> None:
        """Without arguments, the packaged numbers. Raises UsageError for numbers below 1."""
        settings = packaged("context")
        self.k = settings["keep_recent"] if k is None else k
        self.batch = settings["fold_batch"] if batch is None else batch
        if self.k < 1 or self.batch < 1:
            raise UsageError(f"keep-recent: k is {self.k} and batch {self.batch}; both must be at least 1")

    async def fold(self, view: View) -> Folded | None:
        """The results of old rounds, once enough of them are old."""
        old = view.rounds()[: -self.k]
        whole = [round for round in old if any(shown.message.content != LEFT_OUT for shown in round)]
        if len(whole) < self.batch:
            return None
        return Folded("keep-recent", [shown.number for round in whole for shown in round])


class DiscardAll:
    """All but system and task is dropped above `threshold` tokens."""

    def __init__(self, threshold: int | None = None) -> None:
        """Without an argument, the packaged number."""
        self.threshold = packaged("context")["threshold"] if threshold is None else threshold

    async def fold(self, view: View) -> Folded | None:
        """A restart, when it is too long and there is something to drop."""
        if view.tokens <= self.threshold or len(view.shown) <= view.head:
            return None
        return Folded("discard-all", restart=True)


class Hybrid:
    """Keep-recent always, discard-all above `threshold` tokens."""

    def __init__(self, keep: KeepRecent, discard: DiscardAll) -> None:
        self._keep, self._discard = keep, discard

    async def fold(self, view: View) -> Folded | None:
        """First what is cheap."""
        return await self._keep.fold(view) or await self._discard.fold(view)


class Summary:
    """As discard-all, with a note that the model writes to itself."""

    def __init__(self, endpoint: Endpoint, threshold: int | None = None) -> None:
        self._endpoint, self._discard = endpoint, DiscardAll(threshold)

    async def fold(self, view: View) -> Folded | None:
        """A restart with a summary. An empty one is said to be missing rather than passed on."""
        if await self._discard.fold(view) is None:
            return None
        reply = await self._endpoint.chat([*view.messages, Message("user", SUMMARY_REQUEST)], thinking=False)
        text = reply.message.content.strip() or "(no summary was written)"
        return Folded("summary", restart=True, summary=f"Your own notes from before the cut:\n{text}")


def context_manager(kind: Kind, endpoint: Endpoint, threshold: int | None = None) -> ContextManager:
    """By name. Raises UsageError for another one."""
    match kind:
        case "none":
            return KeepAll()
        case "keep-recent":
            return KeepRecent()
        case "discard-all":
            return DiscardAll(threshold)
        case "hybrid":
            return Hybrid(KeepRecent(), DiscardAll(threshold))
        case "summary":
            return Summary(endpoint, threshold)
    raise UsageError(f"there is no context manager {kind!r}; known are {', '.join(KINDS)}")


def reminder(task: str, plan: str, denied: Sequence[str], changed: Sequence[str]) -> str:
    """What holds on after a restart, in words for the model."""
    lines = ["Earlier messages were dropped to save space. What still holds:", f"- The task: {task[:2000]}"]
    lines += [f"- Your plan:\n{plan}"] if plan else []
    lines += [f"- Denied, by whatever way: {what}" for what in denied]
    lines += [f"- Changed so far: {', '.join(changed[:40])}" if changed else "- Nothing was changed so far."]
    lines += ["Do not repeat what you have done; look at the files if you need to know how things stand."]
    return "\n".join(lines)
