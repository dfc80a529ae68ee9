"""What crosses the border of the engine: a request's wishes going in, tokens and counters coming out.

Torch is not needed here, so that the server and its clients can share these records without it.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from glm5.errors import UsageError
from glm5.model.config import ModelConfig

FinishReason = Literal["stop", "length", "abort", "repetition", "error"]
GrammarKind = Literal["json_schema", "regex", "choice", "ebnf", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text must look like.

    Attributes:
        kind: how `value` is read.
        value: a JSON schema (dict), a regular expression, a list of choices, an EBNF with a `root` rule, or for
            "tool_calls" `{"tools": [{"name", "parameters"}, ...], "parallel": bool}`: calls of these tools, then a
            stop.
        after_thinking: free text until `</think>`, then the grammar.
    """

    kind: GrammarKind
    value: Any
    after_thinking: bool = False


@dataclass(frozen=True, slots=True)
class RepetitionGuard:
    """Ends a sequence that only repeats itself: the last `tokens` tokens are one phrase said `times` times or more."""

    longest_phrase: int = 64
    times: int = 8
    tokens: int = 128


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to continue one prompt.

    Attributes:
        max_tokens: new tokens at most.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: keep the most likely tokens that together have probability `top_p`, that are among the
            first `top_k` (0: all), that have at least `min_p` of the best one's probability.
        repetition_penalty: divides the positive and multiplies the negative logits of every token seen, prompt included
            (1: off). presence_penalty, frequency_penalty: subtracted once, or per occurrence, for generated tokens.
        seed: the same seed draws the same tokens; absent, the engine picks one.
        stop_ids, stop: tokens and texts that end a completion; the model's own end tokens do too, unless `ignore_eos`.
            Neither they nor `stop` act before `min_tokens`.
        logit_bias: added to these tokens' logits.
        logprobs: report the log-probability of each token under the model itself, and of the most likely so many.
        prompt_logprobs: the same for the prompt's tokens (which are then all computed, whatever is cached).
        n: so many completions of the prompt; they share its pages.
        thinking_budget: tokens of thought before `</think>` is forced.
        repetition_guard: None lets loops go on.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    ignore_eos: bool = False
    min_tokens: int = 0
    grammar: Grammar | None = None
    thinking_budget: int | None = None
    repetition_guard: RepetitionGuard | None = None

    def replace(self, **changes: Any) -> "SamplingParams":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def check(self, config: ModelConfig) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: naming the field, its value and its range.
        """
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} = {getattr(self, name)} must be a finite number")
        most = config.vocab_size
        counts = {"logprobs": self.logprobs, "prompt_logprobs": self.prompt_logprobs, "top_k": self.top_k}
        wrong = {
            "max_tokens must be at least 1": self.max_tokens < 1,
            "temperature must be 0 or more": self.temperature < 0,
            "top_p must be above 0 and at most 1": not 0 < self.top_p <= 1,
            "min_p must be from 0 to 1": not 0 <= self.min_p <= 1,
            "repetition_penalty must be above 0": self.repetition_penalty <= 0,
            "n must be at least 1": self.n < 1,
            "min_tokens must be from 0 to max_tokens": not 0 <= self.min_tokens <= self.max_tokens,
            "thinking_budget must be 0 or more": self.thinking_budget is not None and self.thinking_budget < 0,
            "stop must not hold an empty text": "" in self.stop,
        }
        wrong |= {
            f"{name} must be from 0 to {most}, the vocabulary": value is not None and not 0 <= value <= most
            for name, value in counts.items()
        }
        for rule, broken in wrong.items():
            if broken:
                raise UsageError(f"{rule}; it is {getattr(self, rule.split()[0])}")
        for name in ("stop_ids", "logit_bias"):
            outside = next((token for token in getattr(self, name) if not 0 <= token < most), None)
            if outside is not None:
                raise UsageError(f"{name}: token id {outside} is outside the vocabulary of {most}")
        if any(math.isnan(bias) for bias in self.logit_bias.values()):
            raise UsageError("logit_bias must not be NaN")


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token.

    Attributes:
        logprob: in nats, under the model itself (temperature 1, no penalties); None unless asked for.
        top_logprobs: the most likely tokens and their log-probabilities, best first.
        version: of the weights that made it.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = field(default_factory=list)
    version: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one sequence.

    Attributes:
        index: which of the n completions.
        tokens: new tokens, the one that stopped it included.
        finish_reason: set in the last delta of a sequence.
        prompt_tokens, cached_tokens: length of the prompt, and how much of it was found in the prefix cache.
        drafted, accepted: draft tokens proposed and accepted so far.
        prompt_logprobs: in the first delta, where asked for: one for each prompt token, None for the first.
        stop_matched: the stop text or token id that ended it.
    """

    sequence_id: str
    index: int
    tokens: list[TokenOutput]
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    prompt_logprobs: list[TokenOutput | None] | None = None
    stop_matched: str | int | None = None


@dataclass(slots=True)
class Completion:
    """All deltas of one sequence together; fields as in `Delta`."""

    index: int
    tokens: list[TokenOutput] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    prompt_logprobs: list[TokenOutput | None] | None = None
    stop_matched: str | int | None = None

    @property
    def ids(self) -> list[int]:
        """The new tokens' ids."""
        return [token.token_id for token in self.tokens]

    def add(self, delta: Delta) -> None:
        """Take in the next delta of this sequence."""
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason
        self.prompt_tokens, self.cached_tokens = delta.prompt_tokens, delta.cached_tokens
        self.drafted, self.accepted = delta.drafted, delta.accepted
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.stop_matched = delta.stop_matched


@dataclass(slots=True)
class EngineStats:
    """Gauges, and counters since the start.

    Attributes:
        used_pages, cached_pages, free_pages: in use by sequences, kept for prefix hits, and neither; their sum is
            `total_pages`.
        steps: forward passes of the network; preemptions: sequences sent back to wait because pages ran out.
        sparse_queries, dense_queries: positions whose attention did and did not leave keys out (counted per layer).
        drafts: verification steps that had drafts; drafted, accepted: draft tokens; accepted_per_position: how often
            the first, second, ... draft was accepted.
    """

    total_pages: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    used_pages: int = 0
    running: int = 0
    waiting: int = 0
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    sparse_queries: int = 0
    dense_queries: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: tuple[int, ...] = ()

    @property
    def acceptance_length(self) -> float:
        """Mean tokens a verification step yields, 1 + accepted / drafts, as vLLM defines it."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes and modes of one engine.

    Attributes:
        cache_bytes: memory for pages (latent rows and index keys of all layers).
        page_size: tokens of a page; a prefix is reused in whole pages.
        max_batch_tokens: positions computed in one step; longer prompts are prefilled in chunks.
        max_sequences: that run at once; others wait.
        draft_tokens: the prediction layer proposes so many tokens a step; "adaptive" begins with 4 and follows the
            measured acceptance of each sequence down to 0.
        batch_invariant: every position is computed with the same shapes and the same order of additions whatever else
            is in the batch: same log-probabilities bit for bit, slower.
        prefix_cache: whether requests may use what earlier ones computed.
        threads: of torch; None leaves them as they are.
    """

    cache_bytes: int = 512 * 2**20
    page_size: int = 16
    max_batch_tokens: int = 1024
    max_sequences: int = 64
    draft_tokens: int | Literal["adaptive"] = 0
    batch_invariant: bool = False
    prefix_cache: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "page_size", "max_batch_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.draft_tokens != "adaptive" and not 0 <= self.draft_tokens <= 16:
            raise UsageError(f"draft_tokens = {self.draft_tokens} must be from 0 to 16, or 'adaptive'")

    @property
    def max_drafts(self) -> int:
        """Draft tokens a step at most."""
        return 4 if self.draft_tokens == "adaptive" else self.draft_tokens
