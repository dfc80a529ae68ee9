"""`serve` as a process of its own: it starts, says where, drains at a signal and leaves with code 0."""

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import save_checkpoint
from glm5.server.command import serve
from tests.model.shapes import perturbed, tiny_config
from tests.server.serving import wait_until

CHAT = {"messages": [{"role": "user", "content": "fox"}], "ignore_eos": True}
SCRIPT = """
import sys
from pathlib import Path
from glm5.server.command import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny-model"
    model = perturbed(tiny_config(vocab_size=tokenizer.vocab_size, num_hidden_layers=2, max_position_embeddings=1024))
    folder.mkdir()
    save_checkpoint(model, folder)
    tokenizer.save(folder)
    return folder


@contextmanager
def process(checkpoint, http):
    """The process of a server and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            line = child.stderr.readline()
            url = f"http://127.0.0.1:{port}"
            assert re.match(rf"tiny-model: {url} ", line), line
            wait_until(lambda: is_up(http, url))
            yield child, url
        finally:
            child.kill()


def is_up(http, url):
    try:
        return http.get(f"{url}/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_a_signal_lets_what_is_in_flight_finish(checkpoint, http):
    with process(checkpoint, http) as (child, url):
        body = {**CHAT, "max_tokens": 300, "stream": True, "stream_options": {"include_usage": True}}
        with http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            seen = [next(lines)]
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: http.get(f"{url}/health").status_code == 503)
            assert http.get(f"{url}/health").json() == {"status": "draining", "in_flight": 1}
            refused = http.post(f"{url}/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert refused.json()["error"]["type"] == "server_error"
            assert "retry-after" in refused.headers
            seen += [line for line in lines if line]
        assert seen[-1] == "data: [DONE]"
        assert json.loads(seen[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 300
        assert child.wait(40) == 0


def test_a_second_signal_does_not_wait(checkpoint, http):
    body = {**CHAT, "stream": True}
    with (
        process(checkpoint, http) as (child, url),
        http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        child.send_signal(signal.SIGINT)
        wait_until(lambda: http.get(f"{url}/health").status_code == 503)
        child.send_signal(signal.SIGINT)
        assert child.wait(40) == 0


def test_what_cannot_be_served(checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        serve(tmp_path)
    with pytest.raises(UsageError, match="positions for 1 to 1024"):
        serve(checkpoint, context_length=4096)
    with pytest.raises(UsageError, match="API key"):
        serve(checkpoint, api_keys=[""])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(GLM5Error, match="cannot listen"):
        serve(checkpoint, port=taken.getsockname()[1])
