"""The responses API through the real `openai` client."""

import json

import openai
import pytest

from glm5.text.messages import Message, ToolCall
from tests.server.serving import MODEL

TOOLS = [
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}},
]
TEXT = Message("assistant", "Sunny – 20 °C", "Let me think.")
CALLS = Message("assistant", "I look.", "Two.", (ToolCall("look", {"city": "Paris"}), ToolCall("now")))


def ask(client, **body):
    return client.responses.create(**{"model": MODEL, "input": "How is the weather?", **body})


def test_items_and_usage(scripted, openai_client):
    server, engine = scripted(TEXT)
    reply = ask(openai_client(server), instructions="Be kind.")
    assert reply.output_text == TEXT.content
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text == TEXT.reasoning_content
    assert (reply.status, reply.instructions) == ("completed", "Be kind.")
    assert reply.usage.input_tokens == len(engine.requests[0].prompt_ids)
    assert 0 < reply.usage.output_tokens_details.reasoning_tokens < reply.usage.output_tokens


@pytest.mark.parametrize("per_step", [1, 4])
def test_a_stream_tells_every_step(scripted, openai_client, per_step):
    server, _ = scripted(CALLS, per_step=per_step)
    with openai_client(server).responses.stream(model=MODEL, input="go", tools=TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(item.arguments) for item in final.output[2:]] == [{"city": "Paris"}, {}]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == "I look."
    arguments = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            arguments[event.item_id] = arguments.get(event.item_id, "") + event.delta
    assert [arguments[item.id] for item in final.output[2:]] == [item.arguments for item in final.output[2:]]
    names = [event.type for event in events]
    assert names.count("response.output_item.added") == names.count("response.output_item.done") == 4
    assert (names[0], names[-1]) == ("response.created", "response.completed")


def test_a_tool_round_sent_back_as_items(scripted, openai_client, tokenizer):
    server, engine = scripted(CALLS, TEXT)
    client = openai_client(server)
    first = ask(client, tools=TOOLS)
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": call.name} for call in calls[::-1]]
    history = [{"role": "user", "content": "How is the weather?"}, *first.output, *outputs]
    ask(client, tools=TOOLS, input=history)
    prompt = tokenizer.decode(engine.requests[1].prompt_ids)
    assert "<think>Two.</think>I look.<tool_call>look<arg_key>city" in prompt
    assert prompt.endswith("<tool_response>look</tool_response><tool_response>now</tool_response><|assistant|><think>")


def test_options(scripted, openai_client, tokenizer):
    server, engine = scripted(TEXT, TEXT, CALLS)
    client = openai_client(server)
    schema = {"type": "object", "properties": {}}
    ask(client, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    cut = ask(client, max_output_tokens=3, reasoning={"effort": "none"})
    one = ask(client, tools=TOOLS, parallel_tool_calls=False)
    structured, short, _ = engine.requests
    assert (structured.params.grammar.kind, structured.params.grammar.value) == ("json_schema", schema)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.prompt_ids[-1] == tokenizer.special_ids["</think>"]
    assert [item.type for item in one.output].count("function_call") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "empty"),
        ({"input": [{"type": "computer_call"}]}, "computer_call"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "tool message"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema"),
    ],
)
def test_what_cannot_be_done_is_refused(scripted, openai_client, body, message):
    server, _ = scripted(TEXT)
    client = openai_client(server)
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, **body)
    assert ask(client).status == "completed"
