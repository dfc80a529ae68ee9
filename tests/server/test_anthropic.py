"""The messages API through the real `anthropic` client."""

import anthropic
import pytest

from glm5.text.messages import Message, ToolCall
from tests.server.serving import MODEL

TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]
ASK = [{"role": "user", "content": "How is the weather?"}]
TEXT = Message("assistant", "Sunny – 20 °C", "Let me think.")
CALLS = Message(
    "assistant", "I look.", "Two.", (ToolCall("get_weather", {"city": "Paris", "days": 2}), ToolCall("now"))
)


def ask(client, **body):
    return client.messages.create(**{"model": MODEL, "max_tokens": 200, "messages": ASK, **body})


def streamed(client, **body):
    """The final message that the client's own accumulator makes of the stream, and the names of the events."""
    with client.messages.stream(**{"model": MODEL, "max_tokens": 200, "messages": ASK, **body}) as stream:
        names = [event.type for event in stream]
        return stream.get_final_message(), names


def test_blocks_and_usage(scripted, anthropic_client):
    server, engine = scripted(TEXT)
    message = ask(anthropic_client(server))
    thinking, text = message.content
    assert (thinking.thinking, text.text) == (TEXT.reasoning_content, TEXT.content)
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    assert message.usage.input_tokens == len(engine.requests[0].prompt_ids)
    assert message.usage.output_tokens > 10
    assert message._request_id.startswith("req_")


@pytest.mark.parametrize("per_step", [1, 4])
def test_a_stream_accumulates_to_the_same_message(scripted, anthropic_client, per_step):
    server, _ = scripted(CALLS, CALLS, per_step=per_step)
    client = anthropic_client(server)
    whole = ask(client, tools=TOOLS)
    final, names = streamed(client, tools=TOOLS)

    def without_ids(message):
        return [block.model_dump(exclude={"id", "parsed_output", "citations"}) for block in message.content]

    assert without_ids(final) == without_ids(whole)
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in final.content[2:]] == [{"city": "Paris", "days": 2}, {}]
    assert (final.stop_reason, whole.stop_reason) == ("tool_use", "tool_use")
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    assert names.count("content_block_start") == names.count("content_block_stop") == 4
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_tool_round_keeps_thoughts_and_their_place(scripted, anthropic_client, tokenizer):
    server, engine = scripted(CALLS, TEXT)
    client = anthropic_client(server)
    first = ask(
        client, tools=TOOLS, system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    )
    ids = [block.id for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": ids[1], "content": [{"type": "text", "text": "noon"}]},
        {"type": "tool_result", "tool_use_id": ids[0], "content": "rain", "is_error": False},
    ]
    history = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = ask(client, tools=TOOLS, system="Be kind.", messages=history)
    prompt = tokenizer.decode(engine.requests[1].prompt_ids)
    assert "<think>Two.</think>I look.<tool_call>get_weather" in prompt
    assert prompt.endswith("<tool_response>rain</tool_response><tool_response>noon</tool_response><|assistant|><think>")
    assert "<|system|>Be kind.<|user|>" in prompt
    assert second.usage.cache_read_input_tokens > 0.9 * len(engine.requests[0].prompt_ids)
    assert second.usage.cache_read_input_tokens + second.usage.input_tokens == len(engine.requests[1].prompt_ids)


def test_count_tokens_counts_what_would_be_read(scripted, anthropic_client):
    server, engine = scripted(TEXT)
    client = anthropic_client(server)
    count = client.messages.count_tokens(model=MODEL, messages=ASK, tools=TOOLS, system="hello")
    ask(client, tools=TOOLS, system="hello")
    assert count.input_tokens == len(engine.requests[0].prompt_ids)


def test_stop_sequences_and_the_end_of_the_room(scripted, anthropic_client):
    server, _ = scripted(TEXT, TEXT, TEXT)
    client = anthropic_client(server)
    message = ask(client, stop_sequences=["20"])
    assert (message.content[-1].text, message.stop_reason, message.stop_sequence) == ("Sunny – ", "stop_sequence", "20")
    assert ask(client, max_tokens=3).stop_reason == "max_tokens"
    final, _ = streamed(client, max_tokens=3)
    assert final.stop_reason == "max_tokens"


def test_thinking_options(scripted, anthropic_client, tokenizer):
    server, engine = scripted(TEXT, TEXT, TEXT)
    client = anthropic_client(server)
    ask(client, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    ask(client, thinking={"type": "adaptive"})
    off = ask(client, thinking={"type": "disabled"})
    endings = [tokenizer.decode(request.prompt_ids[-1:]) for request in engine.requests]
    assert endings == ["<think>", "<think>", "</think>"]
    assert engine.requests[0].params.thinking_budget == 1024
    assert [block.type for block in off.content] == ["text"]


def test_tool_choice(scripted, anthropic_client, tokenizer):
    server, engine = scripted(*[CALLS] * 4)
    client = anthropic_client(server)
    for choice in ({"type": "any"}, {"type": "tool", "name": "now"}, {"type": "none"}):
        ask(client, tools=TOOLS, tool_choice=choice)
    alone = ask(client, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    required, named, none, _ = (request.params for request in engine.requests)
    assert [tool["name"] for tool in required.grammar.value["tools"]] == ["get_weather", "now"]
    assert [tool["name"] for tool in named.grammar.value["tools"]] == ["now"]
    assert tokenizer.special_ids["<tool_call>"] in none.logit_bias
    assert [block.type for block in alone.content].count("tool_use") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "assistant", "content": "The answer is"}]}, "cannot continue"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "tool message"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "a", "input_schema": {}}, {"name": "a", "input_schema": {}}]}, "two tools"),
        ({"tool_choice": {"type": "tool", "name": "nope"}, "tools": TOOLS}, "nope"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_in_anthropics_shape(scripted, anthropic_client, body, message):
    server, _ = scripted(TEXT)
    client = anthropic_client(server)
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, **body)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert message in caught.value.body["error"]["message"]
    assert ask(client).stop_reason == "end_turn"  # the server goes on


def test_wrong_model_and_wrong_key(scripted, anthropic_client):
    server, _ = scripted(TEXT, api_keys=("right",))
    with pytest.raises(anthropic.AuthenticationError) as denied:
        ask(anthropic_client(server, "wrong"))
    assert denied.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(anthropic_client(server, "right"), model="claude")
    assert missing.value.body["error"]["type"] == "not_found_error"
