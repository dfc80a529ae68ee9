"""The accounting of pages: who uses which, which may be reused, which are free.

A page holds the latent rows and the index keys of `page_size` consecutive tokens in all layers: one object, one
lifetime. Full pages carry the hash of everything up to their end, so a new prompt finds the longest prefix somebody
has computed before (hash chaining as in vLLM). A page nobody uses any more keeps its hash until its memory is needed;
the one unused for longest goes first.

    free + cached + used = total        checked whenever the engine is idle
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from glm5.errors import GLM5Error


def page_hash(parent: bytes, ids: Sequence[int]) -> bytes:
    """Name of a full page: its tokens, and through `parent` all tokens before it."""
    return blake2b(parent + b"".join(token.to_bytes(4, "little") for token in ids), digest_size=16).digest()


class PagePool:
    """Reference-counted pages with a prefix index over the full ones."""

    def __init__(self, total: int, page_size: int) -> None:
        self.total, self.page_size = total, page_size
        self._references = [0] * total
        self._hash_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused but named, the longest unused first
        # Unused and unnamed. A dictionary is an ordered set: freed pages go to the end and are taken from the front,
        # and any one of them can be asked for.
        self._free: dict[int, None] = dict.fromkeys(range(total))

    @property
    def free_pages(self) -> int:
        """Pages nobody uses and nobody could find."""
        return len(self._free)

    @property
    def cached_pages(self) -> int:
        """Pages nobody uses, kept for prefix hits."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """Pages that can be had now."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` pages; the caller has checked `available`.

        `after` is the sequence's last page: its neighbour is preferred, because rows that lie in one stretch are read
        in place, without gathering.
        """
        if count > self.available:
            raise GLM5Error(f"{count} pages were taken from a pool that has {self.available} left")
        pages = []
        for _ in range(count):
            wanted = -1 if after is None else after + 1
            if wanted in self._free:
                page = wanted
            elif self._free:
                page = next(iter(self._free))
            else:
                page = next(iter(self._cached))
                del self._cached[page]
                del self._page_of[self._hash_of.pop(page)]
            self._free.pop(page, None)
            self._references[page] = 1
            pages.append(page)
            after = page
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give up one reference to each page. The end of a prefix goes before its beginning."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._hash_of:
                    self._cached[page] = None
                else:
                    self._free[page] = None

    def register(self, page: int, name: bytes) -> None:
        """A page has become full. Where two sequences computed the same tokens, the first page stays the known one."""
        if name not in self._page_of and page not in self._hash_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def match(self, names: Sequence[bytes]) -> list[int]:
        """The known pages of the longest prefix of `names`; the caller gets a reference to each."""
        pages = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            self._cached.pop(page, None)
            self._references[page] += 1
            pages.append(page)
        return pages

    def forget(self) -> None:
        """Drop every name: what the pages hold was made by weights that are gone."""
        self._free.update(self._cached)
        self._cached.clear()
        self._page_of.clear()
        self._hash_of.clear()

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Compare the books with what sequences hold.

        Args:
            held: the pages of every sequence that has any.

        Raises:
            GLM5Error: a page is lost, counted twice or used by nobody.
        """
        expected = [0] * self.total
        for pages in held:
            for page in pages:
                expected[page] += 1
        wrong = [page for page in range(self.total) if expected[page] != self._references[page]]
        used = sum(count > 0 for count in self._references)
        if wrong or used + self.free_pages + self.cached_pages != self.total:
            raise GLM5Error(
                f"page accounting is broken: {used} used + {self.free_pages} free + {self.cached_pages} cached of"
                f" {self.total}; {len(wrong)} pages have a wrong reference count. Please report this."
            )
