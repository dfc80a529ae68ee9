import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, TypeVar

import pytest

from glm5.search.factbook_graph import factbook_graph
from glm5.search.graph import KnowledgeGraph
from glm5.search.questions import Question
from glm5.search.suite import suite_questions

T = TypeVar("T")
Answer = tuple[int, dict[str, str], bytes]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture(scope="session")
def graph() -> KnowledgeGraph:
    return factbook_graph().graph


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    return suite_questions()


@contextmanager
def web_server(answer: Callable[[str, bytes], Answer]) -> Iterator[str]:
    """A real server on this machine; `answer` gets the path and the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            status, headers, body = answer(self.path, self.rfile.read(size))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the reader had enough
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
