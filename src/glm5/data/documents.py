"""A document and its fingerprint, which alone decides duplicates, the held-out split and the order of sampling.

All three are pure functions of the text and a seed. So the tokenizer, which is trained before the corpus is built, can
leave out exactly the documents the corpus will hold out, and no text can stand on both sides of the split.
"""

import hashlib
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Document:
    """One text with where it came from and on what terms it may be used."""

    text: str
    source: str  # the source's name, as a mixture spells it
    license: str  # SPDX name where there is one
    path: str  # where inside the source


def fingerprint(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in white space: copies of one document."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def hash_uniform(purpose: str, seed: int, key: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the arguments; different purposes give independent numbers."""
    digest = hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(8, "little", signed=True), person=purpose.encode())
    return (int.from_bytes(digest.digest(), "little") >> 11) / 2**53  # 53 bits: exact in a double, and never 1.0


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    """Whether `text` belongs to the held-out side; about `fraction` of all texts do.

    A text held out at one fraction is held out at every larger one.
    """
    return hash_uniform("held-out", seed, fingerprint(text)) < fraction


def sampling_rank(text: str, seed: int) -> float:
    """Where `text` stands in the random order in which a source is cut to a number of bytes."""
    return hash_uniform("sampling", seed, fingerprint(text))
