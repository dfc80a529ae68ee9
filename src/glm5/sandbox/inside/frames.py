"""One message of the pipe between the host and the program inside: a JSON header and bytes.

4 bytes: length of the header | 4 bytes: length of the body | header, UTF-8 JSON | body
"""

import json
import struct
from typing import Any

LENGTHS = struct.Struct(">II")


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


class Decoder:
    """Cuts a stream of bytes into frames, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Take the next piece; return the frames that are now complete, as (header, body)."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= LENGTHS.size:
            header_length, body_length = LENGTHS.unpack_from(self._buffer)
            border = LENGTHS.size + header_length
            if len(self._buffer) < border + body_length:
                break
            header = json.loads(self._buffer[LENGTHS.size : border])
            frames.append((header, bytes(self._buffer[border : border + body_length])))
            del self._buffer[: border + body_length]
        return frames
