"""Whether two answers are the same mathematics, by the package `math-verify`. Runs in a `worker.Worker`."""

import logging

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every answer that it cannot read


def equal(gold: str, answer: str, seconds: int) -> bool:
    """Whether `answer` is `gold`, both LaTeX without delimiters; `seconds` for each of its three steps.

    Raises:
        ValueError: `gold` itself cannot be read.
    """
    expected = parse(f"${gold}$", parsing_timeout=seconds)
    if not expected:
        raise ValueError(f"the right answer {gold!r} is no LaTeX that math-verify can read")
    return bool(verify(expected, parse(f"${answer}$", parsing_timeout=seconds), timeout_seconds=seconds))
