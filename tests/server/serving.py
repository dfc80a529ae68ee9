"""A server that really listens on loopback, in a thread of the test process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from glm5.server.app import create_app
from glm5.server.service import ServerSettings, Service, TokenEngine
from glm5.text.tokenizer import Tokenizer

MODEL = "glm-5-tiny"


@dataclass(slots=True)
class Running:
    """A server that listens at `url`."""

    url: str
    port: int
    service: Service


@contextmanager
def running(engine: TokenEngine, tokenizer: Tokenizer, **settings: object) -> Iterator[Running]:
    """Serve until the block ends."""
    known = ServerSettings(**{"model_names": (MODEL,), "context_length": 4096, **settings})
    app = create_app(engine, tokenizer, known)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Running(f"http://127.0.0.1:{port}", port, app.state.service)
    finally:
        server.should_exit = True
        thread.join(40)
        listener.close()
        assert not thread.is_alive(), "the server did not end"


def wait_until(condition, seconds: float = 40.0) -> None:
    """Return as soon as `condition()` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
