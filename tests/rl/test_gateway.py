"""Token in, token out: what was sampled or sent once is never encoded again."""

import asyncio
import itertools
from typing import Any

import pytest

from glm5.agents.endpoint import EndpointError, Reply
from glm5.engine.records import SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation
from glm5.rl.gateway import ClosedRollout, Gateway, GatewayEndpoint, GatewaySettings, UnknownRollout
from glm5.rl.weights import WeightUpdate
from glm5.server.turn import ToolChoice, TurnRequest
from glm5.text.messages import Message, Tool, ToolCall
from glm5.text.template import render
from glm5.text.thinking import ThinkingOptions
from tests.rl.gateway_helpers import TOOLS, scripted, tokenizer, trajectory, written

ASK = [Message("system", "Be kind."), Message("user", "the fox?")]
CALL = Message("assistant", "I look.", "Hm.", (ToolCall("f", {"s": "fox", "n": 2, "u": {"a": [1.5]}}), ToolCall("g")))
SAY = Message("assistant", "It jumps.", "Clear.")
RESULTS = [Message("tool", "brown"), Message("tool", "lazy <|user|> dog")]


def chat(gateway: Gateway, messages: list[Message], tools: tuple[Tool, ...] = TOOLS, **wishes: Any) -> Reply:
    return asyncio.run(gateway.chat("r", messages, tools, **wishes))


def extends(gateway: Gateway, later: int, earlier: int) -> bool:
    turns = gateway.rollout("r").trajectory.turns
    held = turns[earlier].prompt_ids + turns[earlier].ids
    return turns[later].prompt_ids[: len(held)] == held


def test_a_conversation_grows_by_its_new_text_only() -> None:
    gateway, engine = scripted([CALL, SAY, CALL, SAY])
    history = list(ASK)
    for answer in ([*RESULTS], [Message("user", "And then?")], [*RESULTS], []):
        reply = chat(gateway, history)
        history += [reply.message, *answer]
        wanted = render(history[: -1 - len(answer)], TOOLS, clear_thinking=False)
        assert tokenizer().decode(engine.script.requests[-1].prompt_ids) == wanted
    assert all(extends(gateway, k, k - 1) for k in (1, 2, 3))
    assert [turn.finish_reason for turn in gateway.rollout("r").trajectory.turns] == ["tool_calls", "stop"] * 2
    assert reply.cached_tokens > 0.8 * reply.prompt_tokens


def test_a_rollout_of_128_turns_encodes_each_character_once() -> None:
    gateway, _ = scripted(itertools.repeat(written("Hm.</think>Look.<tool_call>g</tool_call><|observation|>")))
    history = list(ASK)
    before = tokenizer().encoded_characters
    for number in range(128):
        history += [chat(gateway, history).message, Message("tool", f"{number} " * 50)]
    encoded = tokenizer().encoded_characters - before
    turns = gateway.rollout("r").trajectory.turns
    received = tokenizer().decode(turns[-1].prompt_ids)
    sampled = "".join(tokenizer().decode(turn.ids) for turn in turns[:-1])
    repeated = 127 * len("<|observation|>")  # rendered again, though the model has written it already
    assert encoded == len(received) - len(sampled) + repeated
    assert all(extends(gateway, k, k - 1) for k in range(1, 128))


def test_cost_of_a_turn_does_not_grow() -> None:
    gateway, _ = scripted(itertools.repeat(written("Hm.<|user|>")))
    history = [Message("user", "start")]
    costs = []
    for _ in range(60):
        before = tokenizer().encoded_characters
        reply = chat(gateway, history)
        costs.append(tokenizer().encoded_characters - before)
        history += [reply.message, Message("user", "again and again")]
    assert len(set(costs[1:])) == 1, costs
    assert gateway.rollout("r").reused_tokens > 59 * 10


@pytest.mark.parametrize(
    "change",
    [
        lambda history: [Message("system", "Be rude."), *history[1:]],
        lambda history: [history[0], Message("user", "the dog?"), *history[2:]],
        lambda history: [*history[:2], Message("assistant", CALL.content, None, CALL.tool_calls), *history[3:]],
        lambda history: [*history[:2], Message("assistant", "I Look.", "Hm.", CALL.tool_calls), *history[3:]],
        lambda history: [*history[:2], Message("assistant", CALL.content, "Hm.", CALL.tool_calls[::-1]), *history[3:]],
        lambda history: [Message("user", "Sum it up."), Message("user", "the fox?")],
    ],
    ids=["system", "user", "thought dropped", "content edited", "calls reordered", "context reset"],
)
def test_what_does_not_extend_is_rendered_whole(change: Any) -> None:
    gateway, engine = scripted([CALL, SAY, SAY])
    history = [*ASK, chat(gateway, ASK).message, *RESULTS]
    changed = change(history)
    chat(gateway, changed)
    assert not extends(gateway, 1, 0)
    assert tokenizer().decode(engine.script.requests[1].prompt_ids) == render(changed, TOOLS, clear_thinking=False)
    chat(gateway, history)  # and the first branch can still be taken up
    assert extends(gateway, 2, 0)


def test_other_tools_make_another_conversation() -> None:
    gateway, _ = scripted([CALL, SAY])
    history = [*ASK, chat(gateway, ASK).message, *RESULTS]
    chat(gateway, history, TOOLS[:1])
    assert not extends(gateway, 1, 0)


def test_a_sub_agent_has_a_branch_of_its_own() -> None:
    gateway, _ = scripted([CALL, SAY, SAY, SAY])
    main = [*ASK, chat(gateway, ASK).message]
    child = [Message("system", "You are the helper."), Message("user", "find it")]
    child += [chat(gateway, child).message, Message("user", "more")]
    chat(gateway, child)
    chat(gateway, [*main, *RESULTS])
    assert [extends(gateway, *pair) for pair in ((1, 0), (2, 1), (3, 0), (3, 2))] == [False, True, True, False]


def test_clients_change_what_does_not_matter() -> None:
    """White space around a reply, ids of calls, the order of arguments, 2.0 for 2, an empty thought left out."""
    gateway, _ = scripted(
        [CALL, written(" \nHm. </think>\n It jumps. \n<|user|>"), written("</think>Yes<|user|>"), SAY]
    )
    chat(gateway, ASK)
    calls = (ToolCall("f", {"u": {"a": [1.5]}, "n": 2.0, "s": "fox"}, "mine"), ToolCall("g", {}, "other"))
    history = [*ASK, Message("assistant", "I look. ", "Hm.", calls), *RESULTS]
    chat(gateway, history)
    assert extends(gateway, 1, 0)
    history += [Message("assistant", "It jumps.", "Hm."), Message("user", "Why?")]
    chat(gateway, history)
    assert extends(gateway, 2, 1)
    chat(gateway, [*history, Message("assistant", "Yes"), Message("user", "Why?")])
    assert extends(gateway, 3, 2)


def test_a_cut_reply_goes_on_as_it_was_sampled() -> None:
    gateway, _ = scripted([CALL, SAY])
    cut = chat(gateway, ASK, max_tokens=2)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2)
    chat(gateway, [*ASK, cut.message, Message("user", "Go on.")])
    first, second = gateway.rollout("r").trajectory.turns
    tail = tokenizer().decode(second.prompt_ids[len(first.prompt_ids) + 2 :])
    assert tail == "<|user|>Go on.<|assistant|><think>"


def test_a_stop_text_ends_the_turn_and_its_ids_there() -> None:
    gateway, _ = scripted([SAY, SAY])
    reply = chat(gateway, ASK, stop=("jumps",))
    assert (reply.message.content, reply.finish_reason) == ("It ", "stop")
    [turn] = gateway.rollout("r").trajectory.turns
    assert tokenizer().decode(turn.ids).startswith("Clear.</think>It ")
    assert "." not in tokenizer().decode(turn.ids).removeprefix("Clear.")
    assert len(turn.ids) == len(turn.logprobs) == len(turn.versions) == reply.completion_tokens
    chat(gateway, [*ASK, reply.message, Message("user", "Go on.")])
    assert extends(gateway, 1, 0)


def test_an_unexpected_end_token_stays_where_it_was_sampled() -> None:
    gateway, _ = scripted([written("Hm.</think>Done.<|endoftext|>"), SAY])
    history = [*ASK, chat(gateway, ASK).message, Message("user", "Go on.")]
    chat(gateway, history)
    assert extends(gateway, 1, 0)
    text = tokenizer().decode(gateway.rollout("r").trajectory.turns[1].prompt_ids)
    assert text.endswith("Done.<|endoftext|><|user|>Go on.<|assistant|><think>")


def test_a_full_context_ends_with_length() -> None:
    gateway, engine = scripted([SAY] * 3, context_length=len(tokenizer().encode(render(ASK, TOOLS), True)) + 3)
    reply = chat(gateway, ASK)
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 3)
    full = chat(gateway, [*ASK, Message("user", "and more")])
    assert (full.finish_reason, full.completion_tokens, full.message) == ("length", 0, Message("assistant"))
    assert len(engine.script.requests) == len(gateway.rollout("r").trajectory.turns) == 1


def test_sampling_is_the_recipes() -> None:
    gateway, engine = scripted([SAY] * 5, temperature=0.7, max_tokens=50)
    asked = SamplingParams(temperature=0.1, top_p=0.5, repetition_penalty=2.0, thinking_budget=3)
    request = TurnRequest(ASK, asked, max_tokens=99)

    async def run() -> None:
        async for _ in gateway.turn("r", request).updates():
            pass

    asyncio.run(run())
    chat(gateway, ASK, temperature=0.3, max_tokens=20, thinking=False)
    gateway.close("r")
    gateway.open(trajectory(), seed=7, temperature=0.0)
    chat(gateway, ASK)
    chat(gateway, ASK)
    params = [each.params for each in engine.script.requests]
    assert [each.temperature for each in params] == [0.7, 0.3, 0.0, 0.0]
    assert [each.max_tokens for each in params] == [50, 20, 50, 50]
    assert [each.seed for each in params] == [None, None, 7, 8]
    assert {(each.top_p, each.repetition_penalty, each.thinking_budget, each.logprobs) for each in params} == {
        (1.0, 1.0, None, 0)
    }
    assert tokenizer().decode(engine.script.requests[1].prompt_ids).endswith("</think>")


def test_clearing_thoughts_renders_anew_at_a_user_message_only() -> None:
    gateway, engine = scripted([CALL, SAY, CALL, SAY], clear_thinking=True)
    history = [*ASK, chat(gateway, ASK).message, *RESULTS]
    history += [chat(gateway, history).message, Message("user", "And then?")]
    history += [chat(gateway, history).message, *RESULTS]
    chat(gateway, history)
    assert [extends(gateway, k, k - 1) for k in (1, 2, 3)] == [True, False, True]
    for request, length in zip(engine.script.requests, (2, 5, 7, 10), strict=True):
        assert tokenizer().decode(request.prompt_ids) == render(history[:length], TOOLS)


def test_glm45_layout() -> None:
    gateway, engine = scripted([CALL, SAY], generation="glm-4.5", clear_thinking=True)
    history = [*ASK, chat(gateway, ASK).message, *RESULTS]
    chat(gateway, history)
    assert extends(gateway, 1, 0)
    assert tokenizer().decode(engine.script.requests[1].prompt_ids) == render(history, TOOLS, generation="glm-4.5")


def test_versions_are_those_of_the_weights() -> None:
    gateway, engine = scripted([CALL, SAY])
    history = [*ASK, chat(gateway, ASK).message, *RESULTS]
    asyncio.run(engine.update(WeightUpdate({}, 0), 3))
    chat(gateway, history)
    assert [set(turn.versions) for turn in gateway.rollout("r").trajectory.turns] == [{0}, {3}]
    assert gateway.close("r").oldest_version == 0


def test_rollouts_open_and_close() -> None:
    gateway, _ = scripted([SAY] * 3)
    with pytest.raises(UsageError, match="open already"):
        gateway.open(trajectory())
    with pytest.raises(UnknownRollout, match="no rollout x"):
        gateway.close("x")
    chat(gateway, ASK)
    assert len(gateway.close("r").turns) == 1
    with pytest.raises(ClosedRollout, match="closed"):
        chat(gateway, ASK)
    endpoint = GatewayEndpoint(gateway, "r")
    with pytest.raises(EndpointError, match="closed"):
        asyncio.run(endpoint.chat(ASK))
    with pytest.raises(UsageError, match="context_length"):
        GatewaySettings(1, 1)


def test_a_reply_that_comes_after_the_end_is_no_part_of_the_rollout() -> None:
    gateway, _ = scripted([SAY], seconds=0.05)

    async def late() -> None:
        asking = asyncio.create_task(gateway.chat("r", ASK))
        await asyncio.sleep(0.01)
        ended = gateway.close("r")
        with pytest.raises(ClosedRollout):
            await asking
        assert ended.turns == []

    asyncio.run(late())


def test_the_endpoint_is_what_agents_expect() -> None:
    gateway, _ = scripted([CALL, SAY])
    endpoint = GatewayEndpoint(gateway, "r")

    async def agent() -> Reply:
        history = list(ASK)
        while (reply := await endpoint.chat(history, TOOLS)).finish_reason == "tool_calls":
            history += [reply.message, *RESULTS]
        return reply

    reply = asyncio.run(agent())
    assert (reply.message, reply.finish_reason) == (SAY, "stop")
    with pytest.raises(EndpointError, match="script"):
        asyncio.run(endpoint.chat(ASK))


def test_a_tool_choice_is_kept_and_nothing_else_is_forced() -> None:
    gateway, engine = scripted([SAY] * 2)

    async def run(choice: ToolChoice) -> None:
        request = TurnRequest(ASK, SamplingParams(), TOOLS, choice, ThinkingOptions(clear_thinking=False))
        async for _ in gateway.turn("r", request).updates():
            pass

    asyncio.run(run(ToolChoice("required")))
    asyncio.run(run(ToolChoice("none")))
    required, none = (each.params for each in engine.script.requests)
    assert required.grammar is not None
    assert required.grammar.kind == "tool_calls"
    assert tokenizer().special_ids["<tool_call>"] in none.logit_bias
    with pytest.raises(UsageError, match="one answer"):
        gateway.turn("r", TurnRequest(ASK, SamplingParams(n=2)))


def test_an_engine_that_breaks_its_word_is_noticed() -> None:
    with pytest.raises(GLM5Error, match="one of each"):
        Generation([1, 2], [0.0], [0, 0], "stop")
