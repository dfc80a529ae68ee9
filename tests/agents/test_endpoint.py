"""The endpoint against the real server, against a server that is busy or broken, and played by a function."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from glm5.agents import endpoint as module
from glm5.agents.endpoint import EndpointError, HttpEndpoint, Reply, ScriptedEndpoint, read_reply
from glm5.errors import UsageError
from glm5.server.scripted import ScriptedEngine
from glm5.text.messages import Message, Tool, ToolCall
from glm5.text.tokenizer import Tokenizer
from tests.server.conftest import TEXTS
from tests.server.serving import MODEL, running

ASK = [Message("user", "How is the weather?")]
LOOK = Tool("look", "Look.", {"type": "object", "properties": {"where": {"type": "string"}}})
GOOD = {"choices": [{"message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


def chat(url: str, messages=ASK, tools=(), **options) -> Reply:
    async def go() -> Reply:
        async with HttpEndpoint(f"{url}/v1", MODEL) as endpoint:
            return await endpoint.chat(messages, tools, **options)

    return asyncio.run(go())


@contextmanager
def answering(*answers: tuple[int, dict[str, str], str]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers (status, headers, body), the last one for ever; and when it was asked."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, headers, body = answers[min(len(times), len(answers) - 1)]
            times.append(time.monotonic())
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", times
    finally:
        server.shutdown()
        server.server_close()


def test_a_turn_with_thought_call_and_usage(tokenizer):
    call = Message("assistant", "I look.", "Where?", (ToolCall("look", {"where": "there"}),))
    engine = ScriptedEngine(tokenizer, [call, Message("assistant", "Sunny", "It is.")])
    with running(engine, tokenizer) as server:
        first = chat(server.url, tools=[LOOK])
        assert first.finish_reason == "tool_calls"
        [made] = first.message.tool_calls
        assert (first.message.content, first.message.reasoning_content) == ("I look.", "Where?")
        assert (made.name, made.arguments) == ("look", {"where": "there"})
        assert first.prompt_tokens == len(engine.requests[0].prompt_ids)
        assert first.completion_tokens > 0
        history = [*ASK, first.message, Message("tool", "sun", tool_call_id=made.id)]
        second = chat(server.url, history, [LOOK])
        assert (second.message.content, second.finish_reason) == ("Sunny", "stop")
        assert second.cached_tokens > first.prompt_tokens // 2


def test_every_option_reaches_the_engine(tokenizer):
    engine = ScriptedEngine(tokenizer, [Message("assistant", "the quick brown fox", "Hm.")] * 2)
    with running(engine, tokenizer) as server:
        reply = chat(server.url, max_tokens=40, temperature=0.25, thinking=False, stop=("brown",))
        assert (reply.message.content, reply.message.reasoning_content) == ("the quick ", None)
        params = engine.requests[0].params
        assert (params.max_tokens, params.temperature) == (40, 0.25)
        assert tokenizer.decode(engine.requests[0].prompt_ids).endswith("</think>")
        assert chat(server.url, max_tokens=3).finish_reason == "length"


def test_a_refused_request_is_told_in_the_servers_words(tokenizer):
    with running(ScriptedEngine(tokenizer, []), tokenizer) as server:
        with pytest.raises(EndpointError, match="400"):
            chat(server.url, temperature=-1.0)
        with pytest.raises(EndpointError, match="refused"):
            chat(server.url + "/nowhere")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(status):
    with answering((status, {"retry-after": "0.2"}, "busy"), (200, {}, json.dumps(GOOD))) as (url, times):
        assert chat(url).message.content == "fine"
    assert times[1] - times[0] >= 0.2


def test_retry_after_may_be_a_date_and_is_not_believed_for_ever():
    assert module._retry_after(formatdate(time.time() + 30), 1.0) == pytest.approx(30, abs=2)
    assert module._retry_after("soon", 1.5) == 1.5
    assert module._LONGEST_WAIT <= 60


def test_a_server_that_stays_broken_and_one_that_is_not_there():
    with answering((500, {"retry-after": "0"}, '{"error": {"message": "no disk"}}')) as (url, times):
        with pytest.raises(EndpointError, match=r"failed 6 times.*500 no disk"):
            chat(url)
        assert len(times) == module.ATTEMPTS


@pytest.mark.parametrize("body", ["", "not json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": 5}]}'])
def test_an_answer_that_is_none(body):
    with answering((200, {}, body)) as (url, _), pytest.raises(EndpointError, match="did not answer with"):
        chat(url)


def test_a_call_with_broken_arguments_is_the_models_fault():
    calls = [{"id": "a", "function": {"name": "look", "arguments": arguments}} for arguments in ("{}", '{"where": ')]
    raw = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}}]}
    reply = read_reply(raw, "here")
    assert reply.message.content == '<tool_call>look{"where": '
    assert [call.id for call in reply.message.tool_calls] == ["a"]


def test_a_url_without_scheme():
    with pytest.raises(UsageError, match="http"):
        HttpEndpoint("localhost:8000/v1", "glm-5")


def test_a_function_plays_the_model():
    async def later(messages, tools):
        return Reply(Message("assistant", f"{len(messages)} {tools[0].name}"), "length", 1, 2, 3)

    calls = Message("assistant", tool_calls=(ToolCall("look"),))
    for script, expected in (
        (lambda messages, tools: "yes", Reply(Message("assistant", "yes"), "stop")),
        (lambda messages, tools: calls, Reply(calls, "tool_calls")),
        (later, Reply(Message("assistant", "1 look"), "length", 1, 2, 3)),
    ):
        endpoint = ScriptedEndpoint(script)
        assert asyncio.run(endpoint.chat(ASK, [LOOK])) == expected
        assert endpoint.requests == [ASK]
