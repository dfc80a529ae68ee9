"""The gateway through the real clients of both APIs: what an agent of anybody's sees, and what is kept of it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import openai
import pytest
import uvicorn

from glm5.rl.gateway import Gateway
from glm5.rl.gateway_http import gateway_app
from glm5.rl.records import Trajectory
from glm5.text.messages import Message, ToolCall
from tests.rl.gateway_helpers import TOOLS, scripted, tokenizer, trajectory, written
from tests.server.serving import wait_until

CALL = Message("assistant", "I look.", "Hm.", (ToolCall("f", {"s": "fox", "n": 2, "u": {"a": [1.5]}}), ToolCall("g")))
SAY = Message("assistant", "It jumps.", "Clear.")
ASK: list[Any] = [{"role": "user", "content": "the fox?"}]
OPENAI_TOOLS: list[Any] = [tool.to_openai() for tool in TOOLS]
ANTHROPIC_TOOLS: list[Any] = [
    {"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in TOOLS
]
# Turns that no message describes exactly: an empty one, a thought that never ends, half a call, an unknown token.
ODD = [
    CALL,
    written("<|user|>"),
    written("only a thought<|user|>"),
    written("Hm.</think><tool_call>f<arg_key>s</arg_key><arg_value>fo<|observation|>"),
    [*written("Hm.</think>"), 400, *written("ok<|endoftext|>")],
    written("</think> ok <tool_call>g</tool_call> after<|observation|>"),
    SAY,
]


@contextmanager
def listening(gateway: Gateway) -> Iterator[str]:
    """The address of the gateway, served by a thread until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gateway_app(gateway), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(40)
        listener.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    """`serve(replies)` gives (gateway with rollout "r" open, its engine, its address)."""
    with ExitStack() as servers:

        def start(replies: Any, **settings: Any) -> Any:
            gateway, engine = scripted(replies, **settings)
            return gateway, engine, servers.enter_context(listening(gateway))

        yield start


@pytest.fixture(scope="module")
def openai_client() -> Iterator[Any]:
    with openai.OpenAI(base_url="http://nowhere", api_key="none", timeout=60) as client:
        yield lambda url, rollout="r": client.with_options(base_url=f"{url}/rollouts/{rollout}/v1")


@pytest.fixture(scope="module")
def anthropic_client() -> Iterator[Any]:
    with anthropic.Anthropic(base_url="http://nowhere", api_key="none", timeout=60) as client:
        yield lambda url, rollout="r": client.with_options(base_url=f"{url}/rollouts/{rollout}")


def assert_never_encoded_again(rollout: Trajectory, turns: int) -> None:
    assert len(rollout.turns) == turns
    for earlier, later in pairwise(rollout.turns):
        held = earlier.prompt_ids + earlier.ids
        assert later.prompt_ids[: len(held)] == held


def openai_turn(client: Any, history: list[Any], stream: bool) -> None:
    """Ask, and extend the history with the answer and the results of its calls."""
    asked = {"model": "any-name", "messages": history, "tools": OPENAI_TOOLS}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked).choices[0].message
    history.append(message.model_dump(exclude_none=True))
    results = [{"role": "tool", "tool_call_id": call.id, "content": "brown"} for call in message.tool_calls or ()]
    history += results or [{"role": "user", "content": "more"}]


def anthropic_turn(client: Any, history: list[Any], stream: bool) -> None:
    """The same in the other API."""
    asked = {"model": "any-name", "max_tokens": 500, "messages": history, "tools": ANTHROPIC_TOOLS}
    if stream:
        with client.messages.stream(**asked) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asked)
    history.append({"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]})
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "brown"}
        for block in message.content
        if block.type == "tool_use"
    ]
    history.append({"role": "user", "content": results or "more"})


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_agent(serve: Any, openai_client: Any, stream: bool) -> None:
    gateway, engine, url = serve(ODD)
    history = list(ASK)
    for _ in ODD:
        openai_turn(openai_client(url), history, stream)
    assert_never_encoded_again(gateway.close("r"), len(ODD))
    assert {request.params.temperature for request in engine.script.requests} == {1.0}


@pytest.mark.parametrize("stream", [False, True])
def test_an_anthropic_agent(serve: Any, anthropic_client: Any, stream: bool) -> None:
    gateway, _, url = serve(ODD)
    history = list(ASK)
    for _ in ODD:
        anthropic_turn(anthropic_client(url), history, stream)
    assert_never_encoded_again(gateway.close("r"), len(ODD))


def test_answers_are_those_of_the_server(serve: Any, openai_client: Any, anthropic_client: Any) -> None:
    _, _, url = serve([CALL, CALL])
    choice = (
        openai_client(url)
        .chat.completions.create(
            model="m", messages=ASK, tools=OPENAI_TOOLS, logprobs=True, extra_body={"return_token_ids": True}
        )
        .choices[0]
    )
    assert (choice.finish_reason, choice.message.content, choice.message.reasoning_content) == (
        "tool_calls",
        "I look.",
        "Hm.",
    )
    assert [call.function.name for call in choice.message.tool_calls] == ["f", "g"]
    assert len(choice.logprobs.content) == len(choice.token_ids)
    message = anthropic_client(url).messages.create(model="m", max_tokens=99, messages=ASK, tools=ANTHROPIC_TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (message.stop_reason, message.model) == ("tool_use", "m")


def test_what_the_agent_says_of_thinking_holds_and_else_the_settings(serve: Any, openai_client: Any) -> None:
    _, engine, url = serve([SAY] * 5, enable_thinking=False)
    client = openai_client(url)
    wishes: list[dict[str, Any]] = [
        {},
        {"thinking": {"type": "enabled"}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "high"},
        {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"clear_thinking": True}},
    ]
    for wish in wishes:
        client.chat.completions.create(model="m", messages=ASK, extra_body=wish)
    endings = [tokenizer().decode(request.prompt_ids[-1:]) for request in engine.script.requests]
    assert endings == ["</think>", "<think>", "<think>", "<think>", "</think>"]


def test_a_full_context_is_an_answer_cut_short(serve: Any, openai_client: Any, anthropic_client: Any) -> None:
    _, engine, url = serve([SAY], context_length=20)
    long: list[Any] = [{"role": "user", "content": "the fox " * 50}]
    choice = openai_client(url).chat.completions.create(model="m", messages=long).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert anthropic_client(url).messages.create(model="m", max_tokens=9, messages=long).stop_reason == "max_tokens"
    assert engine.script.requests == []


def test_models(serve: Any, openai_client: Any) -> None:
    _, _, url = serve([])
    assert [model.id for model in openai_client(url).models.list()] == ["glm-5"]


def test_unknown_and_closed_rollouts(serve: Any, openai_client: Any, anthropic_client: Any) -> None:
    gateway, _, url = serve([SAY])
    with pytest.raises(openai.NotFoundError, match="no rollout nobody"):
        openai_client(url, "nobody").chat.completions.create(model="m", messages=ASK)
    with pytest.raises(anthropic.NotFoundError) as missing:
        anthropic_client(url, "nobody").messages.create(model="m", max_tokens=9, messages=ASK)
    assert missing.value.body["error"]["type"] == "not_found_error"
    gateway.close("r")
    with pytest.raises(openai.ConflictError, match="closed"):
        openai_client(url).chat.completions.create(model="m", messages=ASK)
    with pytest.raises(anthropic.ConflictError, match="closed") as late:
        anthropic_client(url).messages.create(model="m", max_tokens=9, messages=ASK)
    assert late.value.body["type"] == "error"
    with pytest.raises(openai.ConflictError):
        openai_client(url).models.list()


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", b"{", "not valid JSON"),
        ("chat/completions", b'{"messages": []}', "empty"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "n": 2}', "one answer"),
        ("chat/completions", b'{"messages": [{"role": "alien", "content": "x"}]}', "alien"),
        ("messages", b"[]", "object"),
        ("messages", b'{"max_tokens": 5, "messages": [{"role": "user", "content": 5}]}', "messages.0"),
        ("messages", b'{"max_tokens": 5, "messages": [{"role": "assistant", "content": "x"}]}', "cannot continue"),
    ],
)
def test_malformed_requests(serve: Any, path: str, body: bytes, message: str) -> None:
    gateway, _, url = serve([SAY])
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/rollouts/r/v1/{path}", content=body, headers=headers)
    assert answer.status_code == 400
    told = answer.json()
    assert message in told["error"]["message"]
    assert (told.get("type") == "error") == (path == "messages")
    assert gateway.close("r").turns == []


def test_a_client_that_hangs_up_leaves_no_turn(serve: Any) -> None:
    gateway, engine, url = serve([SAY, SAY], seconds=0.3)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/rollouts/r/v1/chat/completions", json={"messages": ASK}, timeout=0.1)
    wait_until(lambda: engine.script.stats().running == 0)
    assert gateway.close("r").turns == []
    gateway.open(trajectory())
    assert httpx.post(f"{url}/rollouts/r/v1/chat/completions", json={"messages": ASK}).status_code == 200
    assert len(gateway.close("r").turns) == 1
