"""One sequence on its way through the engine: its tokens, its pages, and how far they are computed."""

from dataclasses import dataclass, field
from enum import Enum, auto

from glm5.engine.pages import page_hash
from glm5.engine.records import FinishReason, SamplingParams, TokenOutput
from glm5.engine.sampler import SamplingState
from glm5.engine.stopping import StopCondition


class State(Enum):
    """Where a sequence is."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated behind it.

    Attributes:
        arrival: position in the queue of all sequences ever; who came first is served first.
        ids: prompt and generated tokens; the rows of the first `computed` of them are in `pages`.
        leader: the sibling that computes the prompt which all n completions share, or None.
        stop: says when it is over.
        salt: what must be equal, besides tokens, for a page to be shared.
        most_tokens: new tokens at most, by the request, the context and the pages.
        drafts: tokens proposed to follow `ids`, to be verified in the next step.
        draft_limit: how many drafts are worth while; 0 once too few were accepted.
        acceptance: running mean of the accepted share of drafts.
    """

    request_id: str
    index: int
    arrival: int
    ids: list[int]
    params: SamplingParams
    sampling: SamplingState
    stop: StopCondition
    salt: bytes
    most_tokens: int
    leader: "Sequence | None" = None
    prompt_tokens: int = 0
    state: State = State.WAITING
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    cached_tokens: int | None = None
    drafts: list[int] = field(default_factory=list)
    draft_limit: int = 0
    acceptance: float = 1.0
    drafted: int = 0
    accepted: int = 0
    prompt_logprobs: list[TokenOutput | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    @property
    def pending(self) -> int:
        """Known tokens that are not computed yet; 1 while decoding."""
        return len(self.ids) - self.computed

    @property
    def generated(self) -> int:
        """Tokens made so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def tokens_left(self) -> int:
        """Tokens it may still make."""
        return self.most_tokens - self.generated

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether some of the prompt's log-probabilities are asked for and missing: then every token is computed."""
        asked = self.params.prompt_logprobs is not None and self.index == 0
        return asked and len(self.prompt_logprobs) < self.prompt_tokens

    def page_names(self, version: int, page_size: int, count: int) -> list[bytes]:
        """Names of the first `count` pages, all of them full, under weights `version`."""
        while len(self.names) < count:
            start = len(self.names) * page_size
            parent = self.names[-1] if self.names else self.salt + version.to_bytes(8, "little")
            self.names.append(page_hash(parent, self.ids[start : start + page_size]))
        return self.names[:count]
