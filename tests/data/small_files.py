"""Folders of small text files, all different and the same every time."""

import random
from pathlib import Path

_WORDS = ("router", "sends", "each", "token", "to", "a", "few", "experts", "and", "the", "rest", "stay", "idle", "now")


def make_files(folder: Path, count: int, words: int, seed: int, suffix: str = ".txt") -> Path:
    """`count` files of 1 to 2 × `words` words; each text begins with `seed.number`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for number in range(count):
        text = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, 2 * words)))
        (folder / f"{number:03}{suffix}").write_text(f"{seed}.{number} {text}\n", encoding="utf-8")
    return folder
