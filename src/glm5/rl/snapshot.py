"""The counters of the orchestrator's process, read together at one moment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """Where the rollouts stand.

    Attributes:
        queued, running, room: groups that wait for the trainer, are in flight, and may still begin.
        rollouts, generating: rollouts in flight, and those of them that wait for an engine's answer.
        sampled_tokens: ever. prompt_tokens, cached_tokens: sent to engines ever, and found in their caches.
        dropped: rollouts by reason, ever.
        why_no_rollouts: what holds new groups back; "" when nothing does.
    """

    version: int
    queued: int
    running: int
    room: int
    rollouts: int
    generating: int
    engines: int
    engines_lost: int
    prompt_tokens: int
    cached_tokens: int
    sampled_tokens: int
    dropped: dict[str, int]
    why_no_rollouts: str
