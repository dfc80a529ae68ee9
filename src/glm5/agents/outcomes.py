"""How things end: the typed results of a call, and a name for every way in which a run can stop."""

from dataclasses import dataclass, field
from enum import StrEnum

from glm5.agents.events import CallStatus


class Status(StrEnum):
    """Why a run stopped. There is no other way out of the loop."""

    VERIFIED = "verified"  # finished, and a recorded test run shows it
    UNVERIFIED = "unverified"  # the model says that it is done, nothing shows it
    GAVE_UP = "gave_up"  # the model says that it cannot be done
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"
    MONEY_LIMIT = "money_limit"
    TIME_LIMIT = "time_limit"
    CONTEXT_FULL = "context_full"  # folding the context did not make room any more
    STUCK = "stuck"
    INTERRUPTED = "interrupted"  # by a person
    ENDPOINT_FAILED = "endpoint_failed"
    SANDBOX_FAILED = "sandbox_failed"


EXIT_CODES: dict[Status, int] = {
    Status.VERIFIED: 0,
    Status.UNVERIFIED: 3,
    Status.GAVE_UP: 4,
    Status.STEP_LIMIT: 5,
    Status.TOKEN_LIMIT: 5,
    Status.MONEY_LIMIT: 5,
    Status.TIME_LIMIT: 5,
    Status.CONTEXT_FULL: 5,
    Status.STUCK: 6,
    Status.INTERRUPTED: 130,
    Status.ENDPOINT_FAILED: 1,
    Status.SANDBOX_FAILED: 1,
}
"""What `glm5 code` exits with. 2 is left to wrong use."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A run is over."""

    status: Status
    summary: str
    evidence: str = ""
    test_command: str = ""
    exit_code: int | None = None
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """What a call gave.

    Attributes:
        text: for the model, whole; the loop shortens it.
        ending: the call ended the run.
    """

    text: str
    status: CallStatus = "ok"
    exit_code: int | None = None
    ending: Ending | None = None
