"""Completions, and the token-in token-out routes, through the real client and plain HTTP."""

import openai
import pytest

from glm5.text.messages import Message
from tests.server.serving import MODEL

TEXT = "A fox – 漢字, and then another fox."


@pytest.fixture
def reply(tokenizer):
    return [*tokenizer.encode(TEXT), tokenizer.special_ids["<|endoftext|>"]]


def test_a_completion(scripted, openai_client, reply, tokenizer):
    server, engine = scripted(reply)
    done = openai_client(server).completions.create(model=MODEL, prompt="Once", max_tokens=99, logprobs=1)
    [choice] = done.choices
    assert (choice.text, choice.finish_reason) == (TEXT, "stop")
    assert engine.requests[0].prompt_ids == tokenizer.encode("Once")
    assert done.usage.completion_tokens == len(reply) == len(choice.logprobs.token_logprobs)


@pytest.mark.parametrize("per_step", [1, 3])
def test_a_completion_stream(scripted, openai_client, reply, per_step):
    server, _ = scripted(reply, per_step=per_step)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(openai_client(server).completions.create(model=MODEL, prompt="x", max_tokens=99, **options))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == len(reply)
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_stop_strings_echo_several_prompts_and_ids(scripted, openai_client, reply, tokenizer):
    server, engine = scripted(*[reply] * 5)
    client = openai_client(server)
    done = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=99, stop=["then"], echo=True)
    assert [choice.text for choice in done.choices] == [start + TEXT.split("then")[0] for start in "aabb"]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    ids = tokenizer.encode("abc")
    assert client.completions.create(model=MODEL, prompt=ids, max_tokens=3).choices[0].finish_reason == "length"
    assert engine.requests[-1].prompt_ids == ids


def test_special_tokens_in_a_prompt_are_text(scripted, openai_client, reply, tokenizer):
    server, engine = scripted(reply)
    openai_client(server).completions.create(model=MODEL, prompt="<|user|>")
    assert tokenizer.special_ids["<|user|>"] not in engine.requests[0].prompt_ids


@pytest.mark.parametrize("prompt", ["", [], [10**9], [[1], []], {"a": 1}])
def test_prompts_that_are_none(scripted, openai_client, reply, prompt):
    server, _ = scripted(reply)
    client = openai_client(server)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=prompt)
    assert client.completions.create(model=MODEL, prompt="x").choices


def test_generate_takes_ids_and_gives_ids(scripted, http, tokenizer, reply):
    server, engine = scripted(reply, reply)
    engine.version = 7
    body = {"input_ids": tokenizer.encode("Once"), "max_tokens": 99, "logprobs": 1}
    done = http.post(f"{server.url}/generate", json=body).json()
    [choice] = done["choices"]
    assert choice["ids"] == reply
    assert choice["versions"] == [7] * len(reply)
    assert choice["logprobs"] == [0.0] * len(reply)
    assert choice["top_logprobs"][0] == [[reply[0], 0.0]]
    assert (choice["finish_reason"], choice["stop_matched"]) == ("stop", reply[-1])
    assert (done["weight_version"], done["prompt_tokens"]) == (7, len(body["input_ids"]))
    params = engine.requests[0].params
    assert (params.temperature, params.top_p, params.repetition_guard) == (1.0, 1.0, None)
    streamed = http.post(f"{server.url}/generate", json={**body, "stream": True}).text.split("\n\n")
    assert len(streamed) == len(reply) + 2  # [DONE] and the end
    assert streamed[-2] == "data: [DONE]"


def test_tokenize_and_detokenize_agree_with_the_tokenizer_and_the_engine(scripted, http, openai_client, tokenizer):
    server, engine = scripted(Message("assistant", "ok"))
    text = "Grüße <|user|> 漢字"
    told = http.post(f"{server.url}/tokenize", json={"prompt": text}).json()
    assert told == {"tokens": tokenizer.encode(text), "count": len(told["tokens"]), "max_model_len": 4096}
    assert http.post(f"{server.url}/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}
    messages = [{"role": "user", "content": "hi"}]
    rendered = http.post(f"{server.url}/tokenize", json={"messages": messages}).json()["tokens"]
    openai_client(server).chat.completions.create(model=MODEL, messages=messages)
    assert rendered == engine.requests[0].prompt_ids
    assert http.post(f"{server.url}/tokenize", json={}).status_code == 400
    assert http.post(f"{server.url}/detokenize", json={"tokens": [-1]}).status_code == 400
