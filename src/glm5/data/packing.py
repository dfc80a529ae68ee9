"""Best-fit packing: whole documents into rows of fixed length, longest first, each into the fullest row that has room.

No document is cut and none crosses a row; what is left of a row is padding. (Best-fit decreasing, Johnson 1973, which
needs at most 11/9 of the fewest possible rows; used for training by Ding et al. 2024.)
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Share documents out to rows.

    Args:
        lengths: positions each document takes.
        capacity: positions of a row.

    Returns:
        For each row the indices of its documents. The same lengths give the same rows.

    Raises:
        ValueError: a document is longer than a row.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free positions, row), ascending; full rows are left out
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if length > capacity:
            raise ValueError(f"document {document} takes {length} positions, a row has {capacity}")
        place = bisect_left(space, (length, 0))
        free, row = space.pop(place) if place < len(space) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(document)
        if free > length:
            insort(space, (free - length, row))
    return rows
