"""The server in front of the real engine with a small network: structure, tools, drafts, versions, and a soak."""

import asyncio
import json
import random
import re
import resource

import httpx
import openai
import pytest
import torch

from glm5.engine.engine import Engine
from glm5.engine.records import EngineSettings
from tests.model.shapes import perturbed, tiny_config
from tests.server.serving import MODEL, running, wait_until

ASK = [{"role": "user", "content": "the weather in Paris"}]
SHORT = {"thinking_token_budget": 3}  # a network that knows nothing would never end its thought
NO_THOUGHT = {"thinking": {"type": "disabled"}}
PERSON = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["fox", "dog"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look", "parameters": PERSON}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def served(tokenizer):
    """The running server and its engine."""
    torch.set_num_threads(1)
    model = perturbed(tiny_config(vocab_size=tokenizer.vocab_size, num_hidden_layers=2, max_position_embeddings=2048))
    settings = EngineSettings(cache_bytes=16 << 20, draft_tokens=2, threads=1)
    with Engine(model, settings, tokenizer) as engine:
        with running(engine, tokenizer, context_length=2048) as server:
            yield server, engine
        wait_until(lambda: engine.stats().running == 0)
        engine.check_accounting()
        assert engine.stats().used_pages == 0


@pytest.fixture(scope="module")
def client(served, openai_client):
    return openai_client(served[0])


def ask(client, **body):
    extra = {**SHORT, **body.pop("extra_body", {})}
    return client.chat.completions.create(model=MODEL, messages=ASK, extra_body=extra, **{"max_tokens": 30, **body})


def test_greedy_answers_are_the_same_streamed_or_whole_and_cached_or_not(client):
    whole = [ask(client, temperature=0) for _ in range(2)]
    texts = [reply.choices[0].message.content for reply in whole]
    chunks = ask(client, temperature=0, stream=True)
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert texts == [streamed, streamed]
    assert whole[1].usage.prompt_tokens_details.cached_tokens > 0.8 * whole[1].usage.prompt_tokens - 16


def test_drafts_are_counted(served, client):
    usage = ask(client, temperature=0).usage
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0
    text = served[0].service.metrics.text().decode()
    metrics = {line.split("{")[0]: float(line.split()[-1]) for line in text.splitlines() if not line.startswith("#")}
    stats = served[1].stats()
    assert metrics["glm5:spec_decode_num_draft_tokens_total"] == stats.drafted > 0
    assert metrics["glm5:spec_decode_acceptance_length"] == pytest.approx(1 + stats.accepted / stats.drafts)
    assert metrics["glm5:generation_tokens_total"] == stats.generated_tokens


@pytest.mark.parametrize("seed", range(3))
def test_json_of_a_schema_after_a_thought(client, seed):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    reply = ask(client, response_format=wanted, seed=seed, max_tokens=200)
    assert reply.choices[0].finish_reason == "stop"
    value = json.loads(reply.choices[0].message.content)
    assert set(value) == {"ok", "kind"}
    assert isinstance(value["ok"], bool)
    assert value["kind"] in ("fox", "dog")


def test_choice_and_regex(client):
    chosen = ask(client, extra_body=NO_THOUGHT | {"structured_outputs": {"choice": ["quick", "lazy"]}})
    assert chosen.choices[0].message.content in ("quick", "lazy")
    matched = ask(client, extra_body=NO_THOUGHT | {"structured_outputs": {"regex": "[ab]{3}-[0-9]{2}"}})
    assert re.fullmatch("[ab]{3}-[0-9]{2}", matched.choices[0].message.content)


def test_a_schema_that_cannot_compile(client):
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            ask(client, response_format=broken, stream=stream)
    with pytest.raises(openai.BadRequestError):
        ask(client, extra_body={"structured_outputs": {"regex": "(["}})
    assert ask(client).choices


def test_tool_choice(client):
    def calls(**body):
        [choice] = ask(client, max_tokens=300, extra_body=NO_THOUGHT, **body).choices
        assert choice.finish_reason == "tool_calls"
        return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]

    assert {name for name, _ in calls(tools=[LOOK, NOW], tool_choice="required")} <= {"look", "now"}
    [(name, arguments)] = calls(tools=[LOOK, NOW], tool_choice={"type": "function", "function": {"name": "look"}})
    assert name == "look"
    assert arguments["kind"] in ("fox", "dog")
    assert calls(tools=[NOW], tool_choice="required", parallel_tool_calls=False) == [("now", {})]


def test_tool_choice_none_beats_a_model_that_wants_nothing_but_calls(client, tokenizer):
    begin = tokenizer.special_ids["<tool_call>"]
    extra = NO_THOUGHT | {"logit_bias": {str(begin): 60}, "return_token_ids": True}
    eager = {"tools": [NOW], "max_tokens": 4, "temperature": 0, "extra_body": extra}
    wants = ask(client, **eager).choices[0]
    assert begin in wants.token_ids
    denied = ask(client, **eager, tool_choice="none").choices[0]
    assert begin not in denied.token_ids


def test_generate_gives_what_the_engine_gives(served, http, tokenizer):
    server, engine = served
    ids = tokenizer.encode("the quick brown fox")
    body = {"input_ids": ids, "max_tokens": 12, "temperature": 0, "logprobs": 2, "prompt_logprobs": 0, "n": 2}
    done = http.post(f"{server.url}/generate", json=body).json()
    first, second = done["choices"]
    assert first["ids"] == second["ids"]
    assert len(first["logprobs"]) == len(first["ids"]) == len(first["top_logprobs"])
    assert first["logprobs"] == pytest.approx([top[0][1] for top in first["top_logprobs"]])
    assert first["prompt_logprobs"][0] is None
    assert [token["id"] for token in first["prompt_logprobs"][1:]] == ids[1:]
    before = engine.version
    engine.update_weights({"lm_head.weight": torch.zeros(tokenizer.vocab_size, 64)})
    try:
        after = http.post(f"{server.url}/generate", json=body).json()
        assert after["weight_version"] == before + 1
        assert set(after["choices"][0]["versions"]) == {before + 1}
        assert set(first["versions"]) == {before}
    finally:
        engine.update_weights({"lm_head.weight": 0.06 * torch.randn(tokenizer.vocab_size, 64)})


def test_soak_of_64_clients_of_which_a_third_hang_up(served):
    """Three waves; every client streams, some leave at random. Nothing fails, no page is lost, memory stays."""
    server, engine = served
    dice = random.Random(5)
    memory = []
    for _ in range(3):
        leaving = [dice.randrange(3) == 0 for _ in range(64)]
        outcomes = asyncio.run(_wave(server.url, leaving, dice))
        assert [outcome for outcome in outcomes if outcome not in ("done", "left")] == []
        assert outcomes.count("left") <= sum(leaving)
        wait_until(lambda: server.service.gate.in_flight == 0 and engine.stats().running == 0)
        engine.check_accounting()
        stats = engine.stats()
        assert (stats.used_pages, stats.waiting) == (0, 0)
        assert stats.free_pages + stats.cached_pages == stats.total_pages
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert memory[-1] - memory[0] < 100_000  # KiB of growth after the first wave


async def _wave(url, leaving, dice):
    plans = [(leaves, dice.randrange(1, 15), dice.randrange(5, 25)) for leaves in leaving]
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [_one_client(http, url, number, *plan) for number, plan in enumerate(plans)]
        return await asyncio.gather(*tasks, return_exceptions=True)


async def _one_client(http, url, number, leaves, patience, length):
    """Stream an answer; one that leaves does so after `patience` lines."""
    messages = [{"role": "user", "content": f"client {number % 16}: " + "the fox " * (number % 7)}]
    body = {"messages": messages, "max_tokens": length, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            return f"status {reply.status_code}: {await reply.aread()!r}"
        lines = []
        async for line in reply.aiter_lines():
            lines.append(line)
            if leaves and len(lines) >= patience:
                return "left"
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    chunks = [json.loads(line) for line in data[:-1]]
    whole = (
        data[-1] == "[DONE]" and chunks[-1]["usage"]["completion_tokens"] > 0 and not any("error" in c for c in chunks)
    )
    return "done" if whole else f"broken stream {lines[-3:]}"
