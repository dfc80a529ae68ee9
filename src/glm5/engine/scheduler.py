"""Who computes how many tokens in the next step: continuous batching.

    waiting --admit: pages for all known tokens, prefix looked up--> running --finish / abort--> finished
       ^                                                                |
       +---------------- preempt: youngest first, pages given up -------+

A step has a budget of tokens. Sequences that decode come first, then prompts are prefilled in chunks, the oldest
first, then new ones are admitted, the oldest first. Somebody who was preempted keeps the place of their arrival. The
oldest sequence is never preempted while others run, so something always advances.
"""

from dataclasses import dataclass

from glm5.engine.pages import PagePool
from glm5.engine.records import EngineSettings
from glm5.engine.sequence import Sequence, State
from glm5.errors import GLM5Error


@dataclass(frozen=True, slots=True)
class Work:
    """The next `count` known tokens of a sequence, and behind the last of them its drafts, if any."""

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Positions this computes."""
        return self.count + len(self.drafts)


class Scheduler:
    """Two queues, ordered by arrival, and the pages."""

    def __init__(self, pool: PagePool, settings: EngineSettings) -> None:
        self.pool, self.settings = pool, settings
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.version = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.state = State.WAITING
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda each: each.arrival)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is; its pages are free at once."""
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        sequence.state = State.FINISHED
        self._give_up_pages(sequence)

    def schedule(self) -> list[Work]:
        """The next step, in order of arrival; empty when nothing waits or runs."""
        plan: dict[int, Work] = {}
        budget = self.settings.max_batch_tokens
        preempted = self.preemptions
        for sequence in sorted(self.running, key=lambda each: (each.pending > 1, each.arrival)):
            if sequence.state is not State.RUNNING or budget == 0:
                continue
            count = min(sequence.pending, budget)
            drafts = sequence.drafts[: budget - count] if count == sequence.pending else []
            work = Work(sequence, count, tuple(drafts))
            gave_way = self._make_room(sequence, sequence.computed + work.tokens)
            budget += sum(plan.pop(victim.arrival).tokens for victim in gave_way if victim.arrival in plan)
            if sequence not in gave_way:
                plan[sequence.arrival] = work
                budget -= work.tokens
        if self.preemptions == preempted:
            self._admit(plan, budget)
        if not plan and (self.running or self.waiting):
            raise GLM5Error("the scheduler found nothing to do although sequences wait: please report this")
        return [plan[arrival] for arrival in sorted(plan)]

    def advance(self, sequence: Sequence, tokens: int) -> None:
        """So many more tokens of `sequence` are computed for good; pages that became full get their names."""
        size = self.settings.page_size
        before = sequence.computed // size
        sequence.computed += tokens
        full = sequence.computed // size
        if full > before:
            names = self._names(sequence, full)
            for page in range(before, full):
                self.pool.register(sequence.pages[page], names[page])

    def room_for(self, sequence: Sequence, tokens: int) -> int:
        """How many more tokens than the computed ones `sequence` has pages for, `tokens` at most; takes free pages
        for them but none from others."""
        size = self.settings.page_size
        missing = -(-(sequence.computed + tokens) // size) - len(sequence.pages)
        if missing > 0:
            sequence.pages += self.pool.allocate(min(missing, self.pool.available), after=sequence.pages[-1])
        return min(tokens, len(sequence.pages) * size - sequence.computed)

    def preempt_all(self) -> None:
        """Send everybody back to wait: what they computed no longer holds."""
        for sequence in list(self.running):
            self._preempt(sequence)

    def forget(self, version: int) -> None:
        """The weights have changed: nothing computed so far may be used again."""
        self.preempt_all()
        self.pool.forget()
        self.version = version
        for sequence in self.waiting:
            sequence.names.clear()

    def check(self) -> None:
        """Compare pages and sequences; see `PagePool.check`."""
        self.pool.check([sequence.pages for sequence in self.running])

    def _admit(self, plan: dict[int, Work], budget: int) -> None:
        for sequence in list(self.waiting):
            if budget == 0 or len(self.running) == self.settings.max_sequences:
                return
            leader = sequence.leader
            if leader is not None and leader.state is not State.FINISHED and leader.pending > 1:
                continue  # its prompt will be in the leader's pages in a moment
            if not self._take_pages(sequence):
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.state = State.RUNNING
            count = min(sequence.pending, budget)
            plan[sequence.arrival] = Work(sequence, count)
            budget -= count

    def _take_pages(self, sequence: Sequence) -> bool:
        """Pages for all known tokens: as many as possible from the prefix cache. False, and none taken, if too few."""
        size = self.settings.page_size
        if not sequence.wants_prompt_logprobs:
            # The last token is always computed: its hidden state is what the next one is made from.
            sequence.pages = self.pool.match(self._names(sequence, (len(sequence.ids) - 1) // size))
        missing = -(-len(sequence.ids) // size) - len(sequence.pages)
        if missing > self.pool.available:
            self._give_up_pages(sequence)
            return False
        sequence.computed = len(sequence.pages) * size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        sequence.pages += self.pool.allocate(missing, after=sequence.pages[-1] if sequence.pages else None)
        return True

    def _make_room(self, sequence: Sequence, tokens: int) -> list[Sequence]:
        """Grow `sequence` to hold `tokens`, at the cost of younger ones; who gave way, at worst itself."""
        missing = -(-tokens // self.settings.page_size) - len(sequence.pages)
        gave_way: list[Sequence] = []
        while missing > self.pool.available:
            victim = max(self.running, key=lambda each: each.arrival)
            self._preempt(victim)
            gave_way.append(victim)
            if victim is sequence:
                return gave_way
        if missing > 0:
            sequence.pages += self.pool.allocate(missing, after=sequence.pages[-1])
        return gave_way

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._give_up_pages(sequence)
        sequence.drafts = []
        self.add(sequence)

    def _give_up_pages(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0

    def _names(self, sequence: Sequence, count: int) -> list[bytes]:
        return sequence.page_names(self.version, self.settings.page_size, count)
