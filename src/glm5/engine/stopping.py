"""When a sequence is over: end tokens, stop texts, its length, or a loop it does not get out of."""

from typing import TYPE_CHECKING

import numpy as np

from glm5.engine.records import FinishReason, RepetitionGuard, SamplingParams
from glm5.text.streams import REPLACEMENT

if TYPE_CHECKING:
    from glm5.text.tokenizer import Tokenizer


class StopCondition:
    """Watches the tokens of one sequence."""

    def __init__(
        self, params: SamplingParams, end_ids: frozenset[int], tokens_left: int, tokenizer: "Tokenizer | None"
    ) -> None:
        """Watch for `end_ids`, the stop texts (which need `tokenizer`), loops, and `tokens_left` tokens."""
        self._end_ids, self._tokens_left, self._min_tokens = end_ids, tokens_left, params.min_tokens
        self._tokenizer = tokenizer
        self._texts = [(text, text.encode()) for text in params.stop]
        self._keep = max((len(raw) for _, raw in self._texts), default=1) - 1
        self._tail = b""  # the end of the text, one byte shorter than the longest stop text
        guard = params.repetition_guard
        self._loop = None if guard is None else LoopDetector(guard)
        self.matched: str | int | None = None

    def observe(self, token: int) -> FinishReason | None:
        """Why the sequence ends with `token`, or None."""
        self._tokens_left -= 1
        self._min_tokens -= 1
        text = self._stop_text(token) if self._texts else None
        if self._min_tokens < 0 and (token in self._end_ids or text is not None):
            self.matched = token if token in self._end_ids else text
            return "stop"
        if self._loop is not None and self._loop.observe(token):
            return "repetition"
        return "length" if self._tokens_left == 0 else None

    def _stop_text(self, token: int) -> str | None:
        assert self._tokenizer is not None
        known = self._tokenizer.is_token(token)
        text = self._tail + (self._tokenizer.token_bytes(token) if known else REPLACEMENT)
        self._tail = text[-self._keep :] if self._keep else b""
        found = [(text.find(raw), stop) for stop, raw in self._texts if raw in text]
        return min(found)[1] if found else None


class LoopDetector:
    """For every phrase length p, how long the tokens have equalled those p places before; all lengths at once."""

    def __init__(self, guard: RepetitionGuard) -> None:
        self._lengths = np.arange(1, guard.longest_phrase + 1)
        # A run of r equal tokens at distance p is a phrase of p tokens said r / p + 1 times.
        self._enough = np.maximum(self._lengths * (guard.times - 1), guard.tokens - self._lengths)
        self._runs = np.zeros(guard.longest_phrase, dtype=np.int64)
        self._recent = np.full(guard.longest_phrase, -1, dtype=np.int64)  # the latest token first

    def observe(self, token: int) -> bool:
        """Take the next token; True when the loop is complete."""
        self._runs = np.where(self._recent == token, self._runs + 1, 0)
        self._recent = np.roll(self._recent, 1)
        self._recent[0] = token
        return bool((self._runs >= self._enough).any())
