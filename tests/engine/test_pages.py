"""The books of the page pool, under any sequence of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from glm5.engine.pages import PagePool, page_hash
from glm5.errors import GLM5Error

TOTAL = 7
NAMES = [page_hash(b"", [i]) for i in range(5)]


class Books(RuleBasedStateMachine):
    """Holders take, share, name and give back pages; a page's content must survive as long as anyone may read it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(TOTAL, 4)
        self.held: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(1, TOTAL))
    def allocate(self, count: int) -> None:
        if count > self.pool.available:
            with pytest.raises(GLM5Error, match="pages"):
                self.pool.allocate(count)
            return
        pages = self.pool.allocate(count, after=self.held[-1][-1] if self.held else None)
        assert len(set(pages)) == count
        assert not set(pages) & {page for pages in self.held for page in pages}
        for page in pages:
            self.content.pop(page, None)  # overwritten from now on
        self.held.append(pages)

    @rule(which=st.integers(0, 6), name=st.sampled_from(NAMES))
    def register(self, which: int, name: bytes) -> None:
        if self.held:
            page = self.held[which % len(self.held)][0]
            if page not in self.content and name not in self.content.values():
                self.content[page] = name
            self.pool.register(page, name)

    @rule(names=st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    def match(self, names: list[bytes]) -> None:
        pages = self.pool.match(names)
        assert [self.content[page] for page in pages] == names[: len(pages)]
        if len(pages) < len(names):
            assert names[len(pages)] not in self.content.values()
        if pages:
            self.held.append(pages)

    @rule(which=st.integers(0, 6))
    def release(self, which: int) -> None:
        if self.held:
            self.pool.release(self.held.pop(which % len(self.held)))

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.content.clear()

    @invariant()
    def balanced(self) -> None:
        self.pool.check(self.held)
        used = {page for pages in self.held for page in pages}
        assert len(used) + self.pool.free_pages + self.pool.cached_pages == TOTAL


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)


def test_the_longest_unused_goes_first_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = PagePool(4, 4)
    first, second = pool.allocate(2), pool.allocate(2)
    for page, name in zip(first + second, NAMES):
        pool.register(page, name)
    pool.release(second)
    pool.release(first)
    pool.allocate(1)
    assert pool.match(NAMES[2:4]) == second[:1]


def test_neighbours_are_preferred() -> None:
    pool = PagePool(8, 4)
    a, b = pool.allocate(2), pool.allocate(1)
    pool.release(b)
    assert pool.allocate(2, after=a[-1]) == [2, 3]


def test_names_depend_on_everything_before() -> None:
    assert page_hash(page_hash(b"", [1, 2]), [3]) != page_hash(page_hash(b"", [1, 9]), [3])
    assert page_hash(b"", [1, 2]) != page_hash(b"", [2, 1])


def test_a_lost_page_is_noticed() -> None:
    pool = PagePool(4, 4)
    pages = pool.allocate(2)
    with pytest.raises(GLM5Error, match="accounting"):
        pool.check([pages[:1]])
