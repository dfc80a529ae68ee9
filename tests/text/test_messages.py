import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.text.messages import Message, Tool, ToolCall, check_conversation, conversation_from_openai

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.builds(ToolCall, name=st.text(min_size=1, max_size=8), arguments=st.dictionaries(TEXT, JSON), id=TEXT)
MESSAGES = (
    st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT)
    | st.builds(
        Message,
        role=st.just("assistant"),
        content=TEXT,
        reasoning_content=st.none() | TEXT,
        tool_calls=st.lists(CALLS, max_size=3).map(tuple),
    )
    | st.builds(Message, role=st.just("tool"), content=TEXT, tool_call_id=st.none() | st.text(min_size=1, max_size=4))
)


@given(MESSAGES)
def test_a_message_survives_the_openai_format(message: Message) -> None:
    assert Message.from_openai(json.loads(json.dumps(message.to_openai()))) == message


@given(st.builds(Tool, name=st.text(min_size=1), description=TEXT, parameters=st.dictionaries(TEXT, JSON)))
def test_a_tool_survives_the_openai_format(tool: Tool) -> None:
    nested = tool.to_openai()
    assert Tool.from_openai(nested) == tool
    assert Tool.from_openai({"type": "function", **nested["function"], "strict": True}) == tool


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"role": "developer", "content": "be brief"}, Message("system", "be brief")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"], "name": "Ann"}, Message("user", "ab")),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}]}, Message("user", "a")),
        ({"role": "user", "content": "a", "tool_calls": None, "reasoning_content": None}, Message("user", "a")),
        ({"role": "assistant", "content": None, "refusal": None}, Message("assistant")),
        ({"role": "assistant", "content": "a", "reasoning": "r"}, Message("assistant", "a", "r")),
        ({"role": "assistant", "content": "a", "reasoning_content": ""}, Message("assistant", "a", "")),
        (
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]},
            Message("tool", "x", tool_call_id="1"),
        ),
    ],
)
def test_client_quirks_are_accepted(raw: dict, expected: Message) -> None:
    assert Message.from_openai(raw) == expected


@pytest.mark.parametrize("arguments", ['{"q": "é"}', {"q": "é"}])
def test_arguments_may_be_a_string_or_an_object(arguments: object) -> None:
    call = ToolCall.from_openai({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}})
    assert call == ToolCall("f", {"q": "é"}, "1")


@pytest.mark.parametrize("arguments", ["", "{}", None, {}])
def test_arguments_may_be_nothing(arguments: object) -> None:
    assert ToolCall.from_openai({"function": {"name": "f", "arguments": arguments}}).arguments == {}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("hello", "must be an object"),
        ({"role": "critic", "content": "a"}, "unknown role 'critic'"),
        ({"content": "a"}, "unknown role None"),
        ({"role": ["user"], "content": "a"}, "unknown role"),
        ({"role": "user", "content": None}, "needs content"),
        ({"role": "user", "content": 5}, "a string or a list of parts"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part 0 is 'image_url'"),
        ({"role": "user", "content": "a", "tool_calls": [{}]}, "only an assistant"),
        ({"role": "user", "content": "a", "reasoning_content": "r"}, "only an assistant"),
        ({"role": "assistant", "reasoning_content": 5}, "must be a string"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "must be a list"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool call 0: the function needs a name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "must be an object"),
        ({"role": "tool", "content": "r", "tool_call_id": "1"}, "must follow the assistant message"),
    ],
)
def test_malformed_messages_are_refused_with_their_index(bad: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=r"^messages\[1\]") as error:
        conversation_from_openai([{"role": "user", "content": "hi"}, bad])
    assert complaint in str(error.value)


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        conversation_from_openai([])


@pytest.mark.parametrize("parameters", ["none", ["a"]])
def test_a_malformed_tool_is_refused(parameters: object) -> None:
    with pytest.raises(UsageError, match="parameters must be an object"):
        Tool.from_openai({"type": "function", "function": {"name": "f", "parameters": parameters}})


def assistant_with_calls(*ids: str) -> dict:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call_id: str | None) -> dict:
    return {"role": "tool", "tool_call_id": call_id, "content": f"result of {call_id}"}


@given(st.permutations(["a", "b", "c"]), st.permutations(["d", "e"]))
def test_results_come_into_the_order_of_their_calls(first: list[str], second: list[str]) -> None:
    raw = [
        assistant_with_calls("a", "b", "c"),
        *map(result, first),
        assistant_with_calls("d", "e"),
        *map(result, second),
    ]
    read = conversation_from_openai(raw)
    assert [m.tool_call_id for m in read if m.role == "tool"] == ["a", "b", "c", "d", "e"]


def test_results_without_ids_keep_their_order() -> None:
    read = conversation_from_openai([assistant_with_calls("a", "b"), result(None), result(None)])
    assert [m.content for m in read[1:]] == ["result of None"] * 2


@pytest.mark.parametrize("ids", [["x"], ["a", "a"], ["a", "b", "a"], ["a", "b", None]])
def test_a_result_without_an_open_call_is_refused(ids: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"^messages\[{len(ids)}\]: tool message"):
        conversation_from_openai([assistant_with_calls("a", "b"), *map(result, ids)])


def test_calls_may_stay_unanswered() -> None:
    check_conversation([Message("assistant", tool_calls=(ToolCall("f", id="a"),)), Message("user", "never mind")])


def test_a_result_cannot_follow_a_later_user_message() -> None:
    call = Message("assistant", tool_calls=(ToolCall("f", id="a"),))
    with pytest.raises(UsageError, match=r"^messages\[2\]"):
        check_conversation([call, Message("user", "wait"), Message("tool", "r", tool_call_id="a")])
