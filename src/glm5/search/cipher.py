"""The encryption of BrowseComp: no secret, only a way to keep questions and answers out of training data as plain text.

A text is XOR-ed with the SHA-256 of a canary, repeated, and written in base64 (Wei et al., arXiv 2504.12516, and the
code published with it). Decrypt in memory, never to a file.
"""

import base64
import binascii
import hashlib
from itertools import cycle

from glm5.errors import GLM5Error


def encrypt(text: str, canary: str) -> str:
    """The base64 of a text XOR-ed with the canary's key."""
    return base64.b64encode(_xor(text.encode(), canary)).decode("ascii")


def decrypt(encrypted: str, canary: str) -> str:
    """What `encrypt` was given.

    Raises:
        GLM5Error: this was not encrypted with this canary.
    """
    try:
        return _xor(base64.b64decode(encrypted, validate=True), canary).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise GLM5Error(f"{encrypted[:40]!r}… was not encrypted with the canary {canary[:40]!r}") from error


def _xor(data: bytes, canary: str) -> bytes:
    return bytes(a ^ b for a, b in zip(data, cycle(hashlib.sha256(canary.encode()).digest())))
