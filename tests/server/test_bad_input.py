"""Whatever comes in, the answer has the shape of the API that was called, and the server goes on."""

import json
import socket

import openai
import pytest

from glm5.errors import GLM5Error
from glm5.server.scripted import ScriptedEngine
from glm5.text.messages import Message
from tests.server.serving import MODEL, running, wait_until

OK = Message("assistant", "fine")
ASK = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": ASK}
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate", "/tokenize"]


def check_shape(path, response, status):
    assert response.status_code == status
    body = response.json()
    error = body["error"]
    assert error["message"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(error) == {"type", "message"}
        assert body["request_id"] == response.headers["request-id"]
    else:
        assert set(error) == {"message", "type", "param", "code"}
    return error


def still_works(server, http):
    reply = http.post(f"{server.url}/v1/chat/completions", json=CHAT)
    assert reply.json()["choices"][0]["message"]["content"] == "fine"


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_not_json_objects(scripted, http, path):
    server, _ = scripted(OK)
    deep = b'{"messages":' + b"[" * 100_000
    for body in (b"{not json", b"", b"[]", b"null", b'"x"', b'{"model": "\xff\xfe"}', deep, b"\x00\x01"):
        reply = http.post(f"{server.url}{path}", content=body, headers={"content-type": "application/json"})
        error = check_shape(path, reply, 400)
        assert error["type"] == "invalid_request_error"
    check_shape(path, http.post(f"{server.url}{path}", content=json.dumps(CHAT)), 400)  # no content type
    still_works(server, http)


@pytest.mark.parametrize("path", PATHS)
def test_unknown_models_paths_and_methods(scripted, http, path):
    server, _ = scripted(OK)
    bodies = {"messages": ASK, "prompt": "x", "input": "x", "max_tokens": 5, "input_ids": [1], "model": "gpt-9"}
    if path == "/tokenize":
        del bodies["messages"]
    error = check_shape(path, http.post(f"{server.url}{path}", json=bodies), 404)
    assert "gpt-9" in error["message"]
    assert MODEL in error["message"]
    check_shape(path, http.get(f"{server.url}{path}"), 405)
    check_shape(f"{path}/nowhere", http.post(f"{server.url}{path}/nowhere", json={}), 404)
    still_works(server, http)


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_body_announced_or_not(scripted, http, path):
    server, _ = scripted(OK, max_body_bytes=10_000)
    huge = b'{"model": "' + b"x" * 100_000 + b'"}'
    headers = {"content-type": "application/json"}
    check_shape(path, http.post(f"{server.url}{path}", content=huge, headers=headers), 413)
    pieces = (huge[i : i + 5000] for i in range(0, len(huge), 5000))
    check_shape(path, http.post(f"{server.url}{path}", content=pieces, headers=headers), 413)
    still_works(server, http)


@pytest.mark.parametrize("path", PATHS)
def test_keys(scripted, http, path):
    server, _ = scripted(OK, api_keys=("first", "zweiter-ß"))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic first"},
        {"authorization": "Bearer"},
        {"x-api-key": "firs"},
        {"authorization": b"Bearer \xff\xfe"},
    ):
        error = check_shape(path, http.post(f"{server.url}{path}", json=CHAT, headers=headers), 401)
        assert error["type"] == "authentication_error"
    for headers in (
        {"authorization": "Bearer first"},
        {"authorization": "bearer zweiter-ß".encode()},
        {"x-api-key": "zweiter-ß".encode()},
    ):
        reply = http.post(f"{server.url}/tokenize", json={"prompt": "x"}, headers=headers)
        assert reply.status_code == 200
    for path in ("/", "/health", "/metrics"):
        assert http.get(f"{server.url}{path}").status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "empty"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: unknown role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [*ASK, {"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "c9"),
        ({"messages": [{"role": "user", "content": "half \ud83d of a pair"}]}, ""),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "none"}}]}, "parameters"),
        ({"tool_choice": "required"}, "no tool"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x'"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"structured_outputs": {}}, "exactly one"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": {"enable_thinking": False}}, "contradict"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ],
)
def test_what_a_chat_request_may_not_say(scripted, http, body, message):
    server, _ = scripted(OK)
    url = f"{server.url}/v1/chat/completions"
    for stream in (False, True):
        content = json.dumps({**CHAT, **body, "stream": stream})
        reply = http.post(url, content=content, headers={"content-type": "application/json"})
        assert message in check_shape(url, reply, 400)["message"]
    still_works(server, http)


def test_a_prompt_longer_than_the_context(scripted, openai_client):
    server, engine = scripted(OK, OK, context_length=64)
    client = openai_client(server)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 500}])
    assert caught.value.code == "context_length_exceeded"
    assert "64" in str(caught.value)
    # An answer that is asked to be longer than the room gets the room.
    client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=100_000)
    [request] = engine.requests
    assert request.params.max_tokens == 64 - len(request.prompt_ids)


def test_a_refusal_of_the_engine_has_its_own_status_even_for_a_stream(scripted, http):
    server, _ = scripted(OK)
    still_works(server, http)
    reply = http.post(f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True})  # the script is at its end
    assert "script" in check_shape("/v1", reply, 400)["message"]


class FailingEngine(ScriptedEngine):
    """Breaks down after three steps of every answer but the last."""

    async def stream(self, prompt_ids, params, /):
        steps = 0
        async for delta in super().stream(prompt_ids, params):
            yield delta
            steps += 1
            if steps == 3 and len(self.requests) < 3:
                raise GLM5Error("the engine broke down")


def test_a_failure_in_the_middle_of_a_stream_ends_it_with_an_error_event(http, tokenizer):
    with running(FailingEngine(tokenizer, [OK] * 3), tokenizer) as server:
        with http.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert reply.status_code == 200
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "the engine broke down"
        body = {**CHAT, "max_tokens": 9, "stream": True}
        with http.stream("POST", f"{server.url}/v1/messages", json=body) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert lines[-2] == "event: error"
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "error"
        still_works(server, http)


def test_too_many_at_once_are_told_to_come_back(scripted, http, tokenizer):
    server, engine = scripted([5] * 1000, OK, seconds=0.01, max_in_flight=1)
    with http.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        busy = http.post(f"{server.url}/v1/chat/completions", json=CHAT)
        check_shape("/v1", busy, 429)
        assert int(busy.headers["retry-after"]) > 0
        assert http.get(f"{server.url}/health").json() == {"status": "ok", "in_flight": 1}
    wait_until(lambda: server.service.gate.in_flight == 0)
    assert engine.stats().running == 0
    still_works(server, http)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_work(scripted, http, stream):
    server, engine = scripted([5] * 4000, OK, seconds=0.005)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(post(CHAT | {"stream": stream}))
        wait_until(lambda: engine.stats().running == 1)
    wait_until(lambda: engine.stats().running == 0)
    assert engine.stats().generated_tokens < 1000
    wait_until(lambda: b'finished_reason="abort",model_name' in server.service.metrics.text())
    still_works(server, http)


def test_a_client_that_never_reads_holds_up_nobody_and_is_dropped(scripted, http):
    endless = [5] * 200_000
    server, engine = scripted(endless, *[OK] * 4, context_length=10**6, per_step=50, send_timeout=1.0)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(CHAT | {"stream": True, "logprobs": True}))
        wait_until(lambda: engine.stats().generated_tokens > 1000)
        for _ in range(3):
            still_works(server, http)
        wait_until(lambda: server.service.gate.in_flight == 0)
    assert engine.stats().running == 0
    assert engine.stats().generated_tokens < len(endless)
    still_works(server, http)


def post(body):
    """The bytes of a request for a chat completion."""
    content = json.dumps(body).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{headers}\r\n".encode() + content
