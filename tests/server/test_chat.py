"""Chat completions through the real `openai` client: text, thoughts, tools, structure, usage."""

import json

import openai
import pytest

from glm5.text.messages import Message, ToolCall
from tests.server.serving import MODEL

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "How is the weather?"}]
PARIS = ToolCall("get_weather", {"city": 'Pa"r\\is <b> 🌦\n', "days": 2})
TEXT = Message("assistant", "Sunny – 20 °C ☀️", "Let me think about 天気.")
CALLS = Message("assistant", "I look.", "Two calls.", (PARIS, ToolCall("now")))


def stream(client, **body):
    """The chunks of a stream, and what they add up to."""
    chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, **body))
    text, thought, finish, calls = "", "", [], {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        text += choice.delta.content or ""
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        finish += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or ():
            if call.id:
                calls[call.index] = [call.id, call.function.name, ""]
            calls[call.index][2] += call.function.arguments
    return chunks, text, thought, finish, calls


def test_an_answer_with_its_thought_and_its_usage(scripted, openai_client):
    server, engine = scripted(TEXT)
    reply = openai_client(server).chat.completions.create(model=MODEL, messages=ASK)
    [choice] = reply.choices
    assert (choice.message.content, choice.message.reasoning_content) == (TEXT.content, TEXT.reasoning_content)
    assert choice.finish_reason == "stop"
    assert reply.usage.prompt_tokens == len(engine.requests[0].prompt_ids)
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("per_step", [1, 4])
def test_a_stream_adds_up_to_the_answer(scripted, openai_client, per_step):
    server, _ = scripted(TEXT, per_step=per_step)
    chunks, text, thought, finish, _ = stream(openai_client(server), stream_options={"include_usage": True})
    assert (text, thought, finish) == (TEXT.content, TEXT.reasoning_content, ["stop"])
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_is_without_choices(scripted, openai_client):
    server, _ = scripted(TEXT)
    chunks, *_ = stream(openai_client(server))
    assert all(chunk.choices for chunk in chunks)


@pytest.mark.parametrize("per_step", [1, 5])
def test_parallel_calls_one_without_arguments(scripted, openai_client, per_step):
    server, _ = scripted(CALLS, CALLS, per_step=per_step)
    client = openai_client(server)
    reply = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, NOW])
    first, second = reply.choices[0].message.tool_calls
    assert (first.function.name, json.loads(first.function.arguments)) == ("get_weather", PARIS.arguments)
    assert (second.function.name, second.function.arguments) == ("now", "{}")
    assert reply.choices[0].finish_reason == "tool_calls"
    _, text, thought, finish, calls = stream(client, tools=[WEATHER, NOW])
    assert (text, thought, finish) == ("I look.", "Two calls.", ["tool_calls"])
    assert [(name, json.loads(arguments)) for _, name, arguments in calls.values()] == [
        ("get_weather", PARIS.arguments),
        ("now", {}),
    ]
    assert len({call_id for call_id, _, _ in calls.values()}) == 2


def test_arguments_come_in_pieces_unless_tool_stream_is_false(scripted, openai_client):
    server, _ = scripted(CALLS, CALLS)
    client = openai_client(server)

    def pieces(**extra):
        chunks, *_ = stream(client, tools=[WEATHER, NOW], extra_body=extra)
        return [
            call.function.arguments
            for chunk in chunks
            for call in chunk.choices[0].delta.tool_calls or ()
            if call.index == 0 and call.function.arguments
        ]

    assert len(pieces(tool_stream=True)) > 5
    assert len(pieces(tool_stream=False)) == 1


def test_parallel_tool_calls_false_ends_the_turn_at_the_first_call(scripted, openai_client):
    server, engine = scripted(CALLS, CALLS)
    client = openai_client(server)
    options = {"tools": [WEATHER, NOW], "parallel_tool_calls": False}
    reply = client.chat.completions.create(model=MODEL, messages=ASK, **options)
    assert [call.function.name for call in reply.choices[0].message.tool_calls] == ["get_weather"]
    assert reply.choices[0].finish_reason == "tool_calls"
    _, _, _, finish, calls = stream(client, **options)
    assert (finish, len(calls)) == (["tool_calls"], 1)
    assert engine.stats().running == 0


def test_a_call_cut_by_the_length_is_not_passed_on(scripted, openai_client, tokenizer):
    server, _ = scripted(CALLS, CALLS)
    client = openai_client(server)
    whole = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, NOW]).usage.completion_tokens
    reply = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, NOW], max_tokens=whole - 3)
    assert [call.function.name for call in reply.choices[0].message.tool_calls] == ["get_weather"]
    assert reply.choices[0].finish_reason == "length"


def test_a_whole_tool_round_reaches_the_model(scripted, openai_client, tokenizer):
    server, engine = scripted(CALLS, TEXT)
    client = openai_client(server)
    message = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, NOW]).choices[0].message
    ids = [call.id for call in message.tool_calls]
    results = [{"role": "tool", "tool_call_id": ids[i], "content": [{"type": "text", "text": f"r{i}"}]} for i in (1, 0)]
    history = [*ASK, message.model_dump(exclude_none=True), *results]
    reply = client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER, NOW])
    assert reply.choices[0].message.content == TEXT.content
    prompt = tokenizer.decode(engine.requests[1].prompt_ids)
    assert prompt.endswith(
        "</tool_call><|observation|><tool_response>r0</tool_response><tool_response>r1</tool_response>"
        "<|assistant|><think>"
    )
    assert "<think>Two calls.</think>I look.<tool_call>get_weather" in prompt
    # The second prompt only adds to what the engine has seen, but for the stop token's own place.
    assert reply.usage.prompt_tokens_details.cached_tokens >= reply.usage.prompt_tokens * 0.6


def test_ten_tool_rounds_with_kept_thoughts_stay_cached(scripted, openai_client):
    rounds = [Message("assistant", "", f"Thought {i}.", (ToolCall("now"),)) for i in range(10)]
    server, _ = scripted(*rounds)
    client = openai_client(server)
    history = [{"role": "system", "content": "You are an agent. " * 40}, *ASK]
    shares = []
    for _ in rounds:
        reply = client.chat.completions.create(
            model=MODEL, messages=history, tools=[NOW], extra_body={"thinking": {"clear_thinking": False}}
        )
        message = reply.choices[0].message
        shares.append(reply.usage.prompt_tokens_details.cached_tokens / reply.usage.prompt_tokens)
        history += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12:00"},
        ]
    assert min(shares[1:]) > 0.95


@pytest.mark.parametrize(
    ("extra", "ending"),
    [
        ({}, "<think>"),
        ({"thinking": {"type": "disabled"}}, "</think>"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "</think>"),
        ({"reasoning_effort": "none"}, "</think>"),
        ({"reasoning_effort": "high"}, "<think>"),
    ],
)
def test_switching_thought_off(scripted, openai_client, tokenizer, extra, ending):
    server, engine = scripted(TEXT)
    reply = openai_client(server).chat.completions.create(model=MODEL, messages=ASK, extra_body=extra)
    assert tokenizer.decode(engine.requests[0].prompt_ids).endswith(f"<|assistant|>{ending}")
    has_thought = getattr(reply.choices[0].message, "reasoning_content", None) is not None
    assert has_thought == (ending == "<think>")
    assert reply.choices[0].message.content == TEXT.content


def test_kept_thoughts_and_the_budget(scripted, openai_client, tokenizer):
    server, engine = scripted(TEXT, TEXT)
    history = [*ASK, {"role": "assistant", "content": "a", "reasoning": "deep"}, *ASK]
    body = {"thinking": {"type": "enabled", "clear_thinking": False}, "thinking_token_budget": 7}
    client = openai_client(server)
    client.chat.completions.create(model=MODEL, messages=history, extra_body=body)
    client.chat.completions.create(model=MODEL, messages=history)
    kept, cleared = (tokenizer.decode(request.prompt_ids) for request in engine.requests)
    assert "<think>deep</think>a" in kept
    assert "deep" not in cleared
    assert [request.params.thinking_budget for request in engine.requests] == [7, None]


def test_quirks_of_clients_are_accepted(scripted, openai_client, tokenizer):
    server, engine = scripted(TEXT)
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "user", "name": "eve", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
    ]
    tool = {"type": "function", "function": {**NOW["function"], "strict": True}}
    body = {"user": "u", "store": False, "max_completion_tokens": 5, "temperature": None, "unheard_of": {"x": 1}}
    reply = openai_client(server).chat.completions.create(model=MODEL, messages=messages, tools=[tool], extra_body=body)
    assert reply.choices[0].finish_reason == "length"
    assert engine.requests[0].params.max_tokens == 5
    prompt = tokenizer.decode(engine.requests[0].prompt_ids)
    assert "<|system|>be kind<|user|>hi<|assistant|></think><tool_call>now<arg_key>zone" in prompt.replace(
        "<think></think>", "</think>"
    )
    assert "None" not in prompt


def test_tool_choice_becomes_a_grammar_or_a_ban(scripted, openai_client, tokenizer):
    server, engine = scripted(*[CALLS] * 4)
    client = openai_client(server)
    named = {"type": "function", "function": {"name": "now"}}
    for choice in ("auto", "none", "required", named):
        client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, NOW], tool_choice=choice)
    auto, none, required, one = (request.params for request in engine.requests)
    assert (auto.grammar, auto.logit_bias, none.grammar) == (None, {}, None)
    assert none.logit_bias == {tokenizer.special_ids["<tool_call>"]: -100.0}
    assert engine.requests[1].prompt_ids == engine.requests[0].prompt_ids  # whose cached prefix stays good
    assert (required.grammar.kind, required.grammar.after_thinking) == ("tool_calls", True)
    assert [tool["name"] for tool in required.grammar.value["tools"]] == ["get_weather", "now"]
    assert required.grammar.value["parallel"]
    assert [tool["name"] for tool in one.grammar.value["tools"]] == ["now"]
    assert not one.grammar.value["parallel"]


def test_response_formats_become_grammars(scripted, openai_client):
    server, engine = scripted(*[TEXT] * 4)
    client = openai_client(server)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    formats = [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}]
    for wanted in formats:
        client.chat.completions.create(model=MODEL, messages=ASK, response_format=wanted)
    client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"structured_outputs": {"regex": "a+"}})
    off = {"structured_outputs": {"choice": ["x", "y"]}, "thinking": {"type": "disabled"}}
    client.chat.completions.create(model=MODEL, messages=ASK, extra_body=off)
    grammars = [request.params.grammar for request in engine.requests]
    assert [(g.kind, g.value, g.after_thinking) for g in grammars] == [
        ("json_schema", {"type": "object"}, True),
        ("json_schema", schema, True),
        ("regex", "a+", True),
        ("choice", ["x", "y"], False),
    ]


@pytest.mark.parametrize("per_step", [1, 7])
def test_a_stop_string_ends_the_answer_and_the_work(scripted, openai_client, per_step):
    long = Message("assistant", "one STAR two STOP three", "I must not STOP here")
    server, engine = scripted(long, long, per_step=per_step)
    client = openai_client(server)
    reply = client.chat.completions.create(model=MODEL, messages=ASK, stop=["STOP", "never"])
    assert reply.choices[0].message.content == "one STAR two "
    assert reply.choices[0].message.reasoning_content == "I must not STOP here"
    _, text, _, finish, _ = stream(client, stop="STOP")
    assert (text, finish) == ("one STAR two ", ["stop"])
    assert engine.stats().running == 0
    assert b'finished_reason="abort"' not in server.service.metrics.text()


def test_several_answers(scripted, openai_client):
    server, _ = scripted(TEXT, Message("assistant", "other"), TEXT, Message("assistant", "other"))
    client = openai_client(server)
    reply = client.chat.completions.create(model=MODEL, messages=ASK, n=2)
    assert [(c.index, c.message.content) for c in reply.choices] == [(0, TEXT.content), (1, "other")]
    parts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model=MODEL, messages=ASK, n=2, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert parts == {0: TEXT.content, 1: "other"}


def test_log_probabilities_and_ids_of_every_token(scripted, openai_client, tokenizer):
    server, engine = scripted(TEXT, TEXT)
    client = openai_client(server)
    extra = {"return_token_ids": True}
    reply = client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True, top_logprobs=1, extra_body=extra)
    [choice] = reply.choices
    entries = choice.logprobs.content
    assert bytes(b for entry in entries for b in entry.bytes) == tokenizer.decode_bytes(choice.token_ids)
    assert len(entries) == reply.usage.completion_tokens
    assert reply.prompt_token_ids == engine.requests[0].prompt_ids
    chunks, *_ = stream(client, logprobs=True, extra_body=extra)
    choices = [chunk.choices[0] for chunk in chunks]
    assert [e.token for c in choices if c.logprobs for e in c.logprobs.content] == [e.token for e in entries]
    assert [i for c in choices for i in getattr(c, "token_ids", None) or ()] == choice.token_ids


def test_bytes_that_are_no_text_come_as_replacement_characters(scripted, openai_client, tokenizer):
    broken = [*tokenizer.encode(b"ok \xff\xfe \xf0\x9f"), tokenizer.special_ids["<|user|>"]]
    server, _ = scripted(broken, broken)
    client = openai_client(server)
    off = {"thinking": {"type": "disabled"}}
    reply = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=off)
    assert reply.choices[0].message.content == "ok \ufffd\ufffd \ufffd"
    assert stream(client, extra_body=off)[1] == "ok \ufffd\ufffd \ufffd"


def test_rows_of_the_network_without_a_token_show_as_replacement_characters(scripted, openai_client, tokenizer):
    script = [*tokenizer.encode("a"), tokenizer.vocab_size + 7, *tokenizer.encode("b")]
    server, _ = scripted(script, script)
    client, off = openai_client(server), {"thinking": {"type": "disabled"}}
    reply = client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True, extra_body=off)
    assert reply.choices[0].message.content == "a\ufffdb"
    assert client.completions.create(model=MODEL, prompt="x").choices[0].text == "a\ufffdb"


def test_ignore_eos_goes_on_behind_an_end_token(scripted, openai_client, tokenizer):
    end = tokenizer.special_ids["<|user|>"]
    script = [*tokenizer.encode("first"), end, *tokenizer.encode(" second")]
    server, _ = scripted(script)
    extra = {"ignore_eos": True, "thinking": {"type": "disabled"}}
    reply = openai_client(server).chat.completions.create(model=MODEL, messages=ASK, extra_body=extra)
    assert reply.choices[0].message.content == "first second"


def test_an_unclosed_thought_is_the_answer_when_the_model_stopped(scripted, openai_client, tokenizer):
    open_thought = [*tokenizer.encode("just an answer"), tokenizer.special_ids["<|user|>"]]
    server, _ = scripted(open_thought, open_thought)
    client = openai_client(server)
    reply = client.chat.completions.create(model=MODEL, messages=ASK)
    assert reply.choices[0].message.content == "just an answer"
    assert stream(client)[1] == "just an answer"


def test_the_request_id_goes_all_the_way(scripted, openai_client):
    server, _ = scripted(TEXT, TEXT)
    client = openai_client(server)
    reply = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, extra_headers={"x-request-id": "my-id.1"}, extra_body={"request_id": "zai"}
    )
    assert reply.headers["x-request-id"] == "my-id.1"
    assert reply.parse().id == "chatcmpl-my-id.1"
    assert reply.parse().request_id == "zai"
    evil = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, extra_headers={"x-request-id": "x" * 500}
    )
    assert evil.headers["x-request-id"].startswith("req_")


def test_models(scripted, openai_client):
    server, _ = scripted(model_names=("glm-5", "claude/alias"))
    client = openai_client(server)
    assert [model.id for model in client.models.list()] == ["glm-5", "claude/alias"]
    assert client.models.retrieve("claude/alias").max_model_len == 4096
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
