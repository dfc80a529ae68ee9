"""One step of the engine, as prose.

    schedule -> forward -> sample each sequence up to its first wrong draft -> advance, stop or go on -> draft

Nothing here knows threads or time; `engine.Engine` runs it.
"""

import itertools
import secrets
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import replace

import torch
from torch import Tensor

from glm5.engine.batch import Span, build_batch
from glm5.engine.cache import PagedCache
from glm5.engine.forward import Network
from glm5.engine.grammar import GrammarCompiler
from glm5.engine.invariant import InvariantNetwork
from glm5.engine.pages import PagePool
from glm5.engine.records import Delta, EngineSettings, EngineStats, FinishReason, SamplingParams, TokenOutput
from glm5.engine.sampler import SamplingState, choose, describe, uniform
from glm5.engine.scheduler import Scheduler, Work
from glm5.engine.sequence import Sequence
from glm5.engine.speculation import Kept, Speculator
from glm5.engine.stopping import StopCondition
from glm5.engine.weights import WeightStore
from glm5.errors import UsageError
from glm5.model.transformer import Transformer
from glm5.text.markers import Marker
from glm5.text.thinking import ThinkingBudget
from glm5.text.tokenizer import Tokenizer

_PROMPT_ROWS = 128  # prompt positions whose logits are alive at once


class EngineCore:
    """Model, pages, queues; advanced one step at a time by one thread."""

    def __init__(self, model: Transformer, settings: EngineSettings, tokenizer: Tokenizer | None) -> None:
        self.model, self.settings, self.tokenizer = model, settings, tokenizer
        embedding = model.model.embed_tokens.weight
        self.cache = PagedCache(
            model.config, settings.cache_bytes, settings.page_size, embedding.dtype, embedding.device
        )
        self.network = InvariantNetwork(model, self.cache) if settings.batch_invariant else Network(model, self.cache)
        if settings.max_drafts and model.mtp is None:
            raise UsageError(
                f"draft_tokens = {settings.draft_tokens}: this network has no prediction layer; set it to 0"
            )
        self.weights = WeightStore(model)
        self.scheduler = Scheduler(PagePool(self.cache.pages, settings.page_size), settings)
        self.speculator = Speculator(self.network, self.scheduler)
        self._compiler = None if tokenizer is None else GrammarCompiler(tokenizer, model.config)
        self._arrivals = itertools.count()
        self._sequences: dict[str, list[Sequence]] = {}
        self._stats = EngineStats()

    # -- requests ------------------------------------------------------------------------------------------------

    def prepare(self, request_id: str, prompt: Items[int], params: SamplingParams) -> list[Sequence]:
        """Check a request and make its sequences; changes nothing, so any thread may call it.

        Raises:
            UsageError: parameters out of range, an empty or too long prompt, a grammar that does not compile, or
                something that needs a tokenizer where there is none.
        """
        config = self.model.config
        params.check(config)
        if not prompt:
            raise UsageError("the prompt is empty: it needs at least one token")
        outside = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
        if outside is not None:
            raise UsageError(f"the prompt has token id {outside}, outside the vocabulary of {config.vocab_size}")
        slots = self.cache.pages * self.settings.page_size
        room = min(config.max_position_embeddings, slots) - len(prompt)
        if room < 1:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer: the context has"
                f" {config.max_position_embeddings} positions and the cache {slots}"
            )
        needs_text = bool(params.stop) or params.grammar is not None or params.thinking_budget is not None
        if needs_text and self.tokenizer is None:
            raise UsageError("stop texts, grammars and thinking budgets need an engine with a tokenizer")
        if params.seed is None:
            params = params.replace(seed=secrets.randbits(63))
        end_ids = frozenset(params.stop_ids)
        if not params.ignore_eos:
            end_ids |= set(config.eos_token_id)
        most = min(params.max_tokens, room)
        salt = b"" if self.settings.prefix_cache else request_id.encode()
        sequences: list[Sequence] = []
        for index in range(params.n):
            sequences.append(
                Sequence(
                    request_id=request_id,
                    index=index,
                    arrival=-1,
                    ids=list(prompt),
                    params=params,
                    sampling=self._sampling_state(params, prompt, end_ids),
                    stop=StopCondition(params, end_ids, most, self.tokenizer),
                    salt=salt,
                    most_tokens=most,
                    leader=sequences[0] if sequences else None,
                )
            )
        return sequences

    def add(self, sequences: list[Sequence]) -> None:
        """Queue what `prepare` made.

        Raises:
            UsageError: a request of that id is under way.
        """
        request_id = sequences[0].request_id
        if request_id in self._sequences:
            raise UsageError(f"request id '{request_id}' is in use: choose another")
        self._sequences[request_id] = list(sequences)
        for sequence in sequences:
            sequence.arrival = next(self._arrivals)
            self.speculator.start(sequence)
            self.scheduler.add(sequence)
        self._stats.prompt_tokens += sequences[0].prompt_tokens * len(sequences)

    def abort(self, request_id: str) -> list[Delta]:
        """End a request; its pages are free when this returns. Nothing happens if it has ended already."""
        return [self._finish(sequence, "abort", []) for sequence in list(self._sequences.get(request_id, ()))]

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def knows(self, request_id: str) -> bool:
        """Whether some sequence of that request is under way."""
        return request_id in self._sequences

    def stats(self) -> EngineStats:
        """Gauges and counters now."""
        pool, speculator, counters = self.scheduler.pool, self.speculator, self.network.counters
        return replace(
            self._stats,
            total_pages=pool.total,
            free_pages=pool.free_pages,
            cached_pages=pool.cached_pages,
            used_pages=pool.total - pool.free_pages - pool.cached_pages,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            preemptions=self.scheduler.preemptions,
            sparse_queries=counters.sparse_queries,
            dense_queries=counters.dense_queries,
            drafts=speculator.drafts,
            drafted=speculator.drafted,
            accepted=speculator.accepted,
            accepted_per_position=tuple(speculator.accepted_per_position),
        )

    # -- weights -------------------------------------------------------------------------------------------------

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """New weights by their stored names; everything cached is forgotten, running sequences are recomputed."""
        try:
            version = self.weights.update(tensors)
        finally:
            self.scheduler.forget(self.weights.version)
        return version

    def sleep(self, discard_weights: bool) -> None:
        """Free the pages' memory, and the weights' if told to; running sequences go back to wait."""
        self.scheduler.forget(self.weights.version)
        self.cache.free()
        if discard_weights:
            self.weights.discard()

    def wake(self) -> None:
        """Get the memory back."""
        self.cache.allocate()
        self.weights.restore()

    # -- one step ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Advance every scheduled sequence; what is new, in order of arrival."""
        works = self.scheduler.schedule()
        if not works:
            return []
        self._stats.steps += 1
        spans = [_span(work) for work in works]
        batch = build_batch(spans, self.model.config, self.cache)
        hidden = self.network.forward(batch)

        deltas, kept = [], []
        sampled = self._sample(works, batch.order, hidden)
        for work, rows, tokens in zip(works, batch.order, sampled):
            sequence = work.sequence
            self._note_prompt(work, hidden[rows])
            accepted = max(0, len(tokens) - 1)
            start = sequence.computed
            self.scheduler.advance(sequence, work.count + accepted)
            if work.drafts:
                self.speculator.verified(sequence, len(work.drafts), accepted)
            sequence.drafts = []
            reason = self._append(sequence, tokens)
            if reason is not None:
                deltas.append(self._finish(sequence, reason, tokens))
                continue
            if tokens:
                deltas.append(self._delta(sequence, tokens))
            if sequence.draft_limit:
                kept.append(Kept(sequence, rows.start, start, work.count + accepted))
        self.speculator.propose(kept, hidden)
        return deltas

    def _sample(self, works: list[Work], order: list[slice], hidden: Tensor) -> list[list[TokenOutput]]:
        """What each sequence makes: nothing in the middle of a prompt, else one token, and one more for each draft
        that is the token sampled in its place. Stops at a token that ends the sequence."""
        sampled: list[list[TokenOutput]] = [[] for _ in works]
        alive = [i for i, work in enumerate(works) if work.count == work.sequence.pending]
        rows = [row for i in alive for row in range(order[i].start + works[i].count - 1, order[i].stop)]
        if not rows:
            return sampled
        logits = self.network.logits(hidden[rows])
        ends = itertools.accumulate(len(works[i].drafts) + 1 for i in alive)
        first_row = {i: end - len(works[i].drafts) - 1 for i, end in zip(alive, ends)}
        place = 0
        while alive:
            raw = logits[[first_row[i] + place for i in alive]]
            sequences = [works[i].sequence for i in alive]
            params = [sequence.params for sequence in sequences]
            adjusted = raw
            if not all(sequence.sampling.is_plain for sequence in sequences):
                adjusted = torch.stack(
                    [row if s.sampling.is_plain else s.sampling.adjust(row) for s, row in zip(sequences, raw)]
                )
            numbers = [uniform(s.params.seed or 0, s.index, len(s.ids) + place) for s in sequences]
            tokens = choose(adjusted, params, numbers)
            outputs = describe(raw, tokens, [each.logprobs for each in params], self.weights.version)
            going = []
            for i, token, output in zip(alive, tokens, outputs):
                sequence = works[i].sequence
                sampled[i].append(output)
                sequence.sampling.observe(token)
                sequence.finish_reason = sequence.stop.observe(token)
                drafts = works[i].drafts
                if sequence.finish_reason is None and place < len(drafts) and drafts[place] == token:
                    going.append(i)
            alive, place = going, place + 1
        return sampled

    def _append(self, sequence: Sequence, tokens: list[TokenOutput]) -> FinishReason | None:
        sequence.ids += [token.token_id for token in tokens]
        self._stats.generated_tokens += len(tokens)
        return sequence.finish_reason

    def _note_prompt(self, work: Work, hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens: position i says how likely token i + 1 was."""
        sequence = work.sequence
        if not sequence.wants_prompt_logprobs:
            return
        known = sequence.prompt_logprobs
        if not known:
            known.append(None)
        first = len(known) - 1  # positions before it were noted before a preemption
        for start in range(max(first, sequence.computed), sequence.computed + work.count, _PROMPT_ROWS):
            stop = min(start + _PROMPT_ROWS, sequence.computed + work.count, sequence.prompt_tokens - 1)
            if start >= stop:
                break
            logits = self.network.logits(hidden[start - sequence.computed : stop - sequence.computed])
            tops = [sequence.params.prompt_logprobs] * (stop - start)
            known += describe(logits, sequence.ids[start + 1 : stop + 1], tops, self.weights.version)

    def _delta(self, sequence: Sequence, tokens: list[TokenOutput]) -> Delta:
        is_first = sequence.generated == len(tokens)
        return Delta(
            sequence_id=sequence.request_id,
            index=sequence.index,
            tokens=tokens,
            finish_reason=sequence.finish_reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens or 0,
            drafted=sequence.drafted,
            accepted=sequence.accepted,
            prompt_logprobs=sequence.prompt_logprobs if is_first and sequence.prompt_logprobs else None,
            stop_matched=sequence.stop.matched,
        )

    def _finish(self, sequence: Sequence, reason: FinishReason, tokens: list[TokenOutput]) -> Delta:
        sequence.finish_reason = reason
        self.scheduler.finish(sequence)
        self._stats.cached_tokens += sequence.cached_tokens or 0
        siblings = self._sequences[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request_id]
        return self._delta(sequence, tokens)

    def _sampling_state(self, params: SamplingParams, prompt: Items[int], end_ids: frozenset[int]) -> SamplingState:
        guide = budget = None
        thinking = False
        if self.tokenizer is not None:
            thinking = _is_thinking(prompt, self.tokenizer.special_ids)
            if params.grammar is not None:
                assert self._compiler is not None
                guide = self._compiler.guide(params.grammar, thinking)
            if params.thinking_budget is not None:
                budget = ThinkingBudget(params.thinking_budget, self.tokenizer, thinking=thinking)
        return SamplingState(params, prompt, self.model.config.vocab_size, end_ids, self.cache.device, guide, budget)


def _span(work: Work) -> Span:
    sequence = work.sequence
    known = sequence.ids[sequence.computed : sequence.computed + work.count]
    return Span([*known, *work.drafts], sequence.computed, sequence.pages)


def _is_thinking(prompt: Items[int], special_ids: Mapping[str, int]) -> bool:
    """Whether the prompt ends inside a thought: its last marker of one is an opening one."""
    opens, closes = special_ids.get(Marker.THINK), special_ids.get(Marker.END_THINK)
    last = next((token for token in reversed(prompt) if token in (opens, closes)), None)
    return last is not None and last == opens
