"""Tokens do not depend on how they were scheduled."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm5.engine.cache import PagedCache
from glm5.engine.core import EngineCore
from glm5.engine.generate import generate
from glm5.engine.records import Completion, EngineSettings, SamplingParams
from glm5.errors import UsageError
from glm5.model.transformer import Transformer
from tests.engine.lone import GREEDY, SMALL, alone, collect, drain, prompt, run
from tests.model.shapes import SHAPES, TINY, perturbed, tiny_config

COUNT = 12
PROMPTS = [prompt(length, seed) for seed, length in enumerate((3, 9, 16, 17, 30, 41, 64))]
PROMPTS += [PROMPTS[5][:20] + prompt(9, 50), PROMPTS[6][:50], PROMPTS[5] + prompt(6, 51)]  # shared prefixes
TIGHT = 4 * 40  # slots: three or four sequences at most


@pytest.fixture(scope="module")
def model() -> Transformer:
    return perturbed(tiny_config())


@pytest.fixture(scope="module")
def wanted(model: Transformer) -> list[list[int]]:
    return [alone(model, ids, COUNT) for ids in PROMPTS]


def page_bytes(model: Transformer, slots: int) -> int:
    return slots * PagedCache(model.config, 1 << 20, 4, torch.float32).bytes_per_token


@pytest.mark.parametrize("name", [name for name, changes in SHAPES.items() if changes.get("attention") != "gqa"])
def test_a_batch_equals_plain_generation(name: str) -> None:
    """Far past top-k for every kind of network, prompts shorter and longer than it."""
    network = perturbed(tiny_config(**SHAPES[name]))
    count = 200 if name == "tiny" else 40
    prompts = [prompt(length, length) for length in (5, 30, 70)]
    expected = generate(network, prompts, count, temperature=0)
    core = EngineCore(network, SMALL, None)
    for [mine], theirs in zip(run(core, prompts, GREEDY.replace(max_tokens=count)), expected):
        assert mine.ids == theirs.ids
        assert mine.finish_reason == "length"
    assert (core.stats().sparse_queries > 0) == network.config.has_indexer


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, len(PROMPTS) - 1)),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("preempt"), st.just(0)),
        st.tuples(st.just("update"), st.just(0)),
    ),
    min_size=3,
    max_size=25,
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    schedule=schedules,
    budget=st.sampled_from([5, 16, 64]),
    most=st.sampled_from([2, 8]),
    tight=st.booleans(),
    drafts=st.sampled_from([0, 0, 2]),
)
def test_any_schedule_gives_the_lone_run(
    model: Transformer,
    wanted: list[list[int]],
    schedule: list[tuple[str, int]],
    budget: int,
    most: int,
    tight: bool,
    drafts: int,
) -> None:
    """Arrivals, cancels, preemptions, prefix hits, and updates that write the same weights again."""
    size = page_bytes(model, TIGHT) if tight else SMALL.cache_bytes
    how = replace(SMALL, cache_bytes=size, max_batch_tokens=budget, max_sequences=most, draft_tokens=drafts)
    core = EngineCore(model, how, None)
    weights = [("model.norm.weight", model.model.norm.weight.detach().clone())]
    results: dict[str, list[Completion]] = {}
    asked: dict[str, int] = {}
    aborted: set[str] = set()
    for action, number in schedule:
        if action == "add":
            name = f"{len(asked)}"
            asked[name] = number
            core.add(core.prepare(name, PROMPTS[number], GREEDY.replace(max_tokens=COUNT)))
        elif action == "abort" and core.abort(str(number)):
            aborted.add(str(number))
        elif action == "step":
            for _ in range(number):
                collect(core, results)
        elif action == "preempt":
            core.scheduler.preempt_all()
        elif action == "update":
            core.update_weights(weights)
        core.scheduler.check()
    drain(core, results)
    for name, number in asked.items():
        if name not in aborted:
            assert results[name][0].ids == wanted[number]
        elif name in results:
            ids = results[name][0].ids
            assert ids == wanted[number][: len(ids)]


def test_pages_running_out_preempts_the_youngest(model: Transformer, wanted: list[list[int]]) -> None:
    core = EngineCore(model, replace(SMALL, cache_bytes=page_bytes(model, 4 * 24)), None)
    outs = run(core, [PROMPTS[i] for i in (4, 5, 3)], GREEDY.replace(max_tokens=COUNT))
    assert [out.ids for [out] in outs] == [wanted[i] for i in (4, 5, 3)]
    assert core.stats().preemptions > 0


def test_admission_is_in_order_of_arrival(model: Transformer) -> None:
    """A long prompt at the head of the queue is not passed by short ones that would fit."""
    core = EngineCore(model, replace(SMALL, cache_bytes=page_bytes(model, 4 * 24)), None)
    for name, ids in (("first", PROMPTS[5]), ("long", PROMPTS[6]), ("short", PROMPTS[0])):
        core.add(core.prepare(name, ids, GREEDY.replace(max_tokens=COUNT)))
    order = []
    while core.has_work:
        order += [delta.sequence_id for delta in core.step()]
    assert list(dict.fromkeys(order)) == ["first", "long", "short"]
    assert core.stats().preemptions == 0


def test_an_abort_frees_pages_at_once(model: Transformer) -> None:
    core = EngineCore(model, replace(SMALL, prefix_cache=False), None)
    core.add(core.prepare("a", PROMPTS[6], GREEDY.replace(max_tokens=COUNT)))
    core.step()
    assert core.stats().used_pages > 0
    assert [delta.finish_reason for delta in core.abort("a")] == ["abort"]
    assert core.stats().used_pages == 0
    assert core.abort("a") == []


def test_a_prefix_is_computed_once(model: Transformer, wanted: list[list[int]]) -> None:
    core = EngineCore(model, SMALL, None)
    [[first]] = run(core, [PROMPTS[5]], GREEDY.replace(max_tokens=COUNT))
    [[again]] = run(core, [PROMPTS[5]], GREEDY.replace(max_tokens=COUNT))
    [[longer]] = run(core, [PROMPTS[9]], GREEDY.replace(max_tokens=COUNT))
    assert first.cached_tokens == 0
    assert again.cached_tokens == longer.cached_tokens == 40  # whole pages of the first 41 tokens, the last left to do
    assert again.ids == first.ids == wanted[5]
    assert longer.ids == wanted[9]


def test_a_conversation_finds_what_was_generated_too(model: Transformer) -> None:
    core = EngineCore(model, SMALL, None)
    [[turn]] = run(core, [PROMPTS[3]], GREEDY.replace(max_tokens=COUNT))
    following = [*PROMPTS[3], *turn.ids, *prompt(5, 77)]
    [[second]] = run(core, [following], GREEDY.replace(max_tokens=COUNT))
    assert second.cached_tokens == (17 + COUNT - 1) // 4 * 4  # the last token was sampled and never computed
    assert second.ids == alone(model, following, COUNT)


def test_without_prefix_cache_requests_share_nothing(model: Transformer) -> None:
    core = EngineCore(model, replace(SMALL, prefix_cache=False), None)
    core.add(core.prepare("one", PROMPTS[5], GREEDY))
    drain(core)
    core.add(core.prepare("two", PROMPTS[5], GREEDY))
    assert drain(core)["two"][0].cached_tokens == 0


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_n_completions_share_the_prompt(model: Transformer, prefix_cache: bool) -> None:
    params = SamplingParams(n=4, seed=5, max_tokens=COUNT, ignore_eos=True)
    core = EngineCore(model, replace(SMALL, prefix_cache=prefix_cache), None)
    [outs] = run(core, [PROMPTS[6]], params)
    assert [out.cached_tokens for out in outs] == [0, 60, 60, 60]
    assert len({tuple(out.ids) for out in outs}) == 4
    [alone_outs] = run(EngineCore(model, SMALL, None), [PROMPTS[6]], params.replace(n=2))
    assert [out.ids for out in alone_outs] == [out.ids for out in outs[:2]]


def test_a_seed_fixes_the_tokens_whatever_else_runs(model: Transformer) -> None:
    params = SamplingParams(seed=3, max_tokens=COUNT, top_p=0.95, ignore_eos=True)
    [[lone]] = run(EngineCore(model, SMALL, None), [PROMPTS[4]], params)
    core = EngineCore(model, replace(SMALL, cache_bytes=page_bytes(model, TIGHT), max_batch_tokens=7), None)
    crowd = run(core, PROMPTS[:7], params)
    assert crowd[4][0].ids == lone.ids


def test_the_same_schedule_gives_the_same_bits(model: Transformer) -> None:
    params = SamplingParams(seed=3, max_tokens=COUNT, logprobs=2, ignore_eos=True)
    first, second = (run(EngineCore(model, SMALL, None), PROMPTS, params) for _ in range(2))
    assert [out.tokens for [out] in first] == [out.tokens for [out] in second]


@pytest.mark.parametrize("name", ["tiny", "index-share", "mla without indexer"])
def test_batch_invariant_log_probabilities_are_equal_bit_for_bit(name: str) -> None:
    """Alone, in a crowd, in small chunks, with drafts, after preemptions and behind a prefix hit."""
    network = perturbed(tiny_config(**SHAPES[name]))
    params = GREEDY.replace(max_tokens=COUNT, logprobs=3)
    how = replace(SMALL, batch_invariant=True)
    picked = PROMPTS[:6]
    lone = [run(EngineCore(network, how, None), [ids], params)[0][0].tokens for ids in picked]
    tight = replace(how, cache_bytes=page_bytes(network, TIGHT), max_batch_tokens=19)
    for settings_ in (how, tight, replace(how, draft_tokens=2)):
        core = EngineCore(network, settings_, None)
        assert [out.tokens for [out] in run(core, picked, params)] == lone
        again = run(core, picked, params)
        assert [out.tokens for [out] in again] == lone
        assert settings_ is tight or again[5][0].cached_tokens > 0
    plain = run(EngineCore(network, SMALL, None), picked, params)
    for [out], exact in zip(plain, lone):
        assert [token.token_id for token in exact] == out.ids
        for mine, theirs in zip(out.tokens, exact):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_prompt_log_probabilities(model: Transformer) -> None:
    """Of every prompt token, in any chunking, although the prompt is cached."""
    ids = PROMPTS[6]
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([ids])).hidden)[0].log_softmax(-1)
    core = EngineCore(model, replace(SMALL, max_batch_tokens=7), None)
    run(core, [ids], GREEDY)
    [[out]] = run(core, [ids], GREEDY.replace(prompt_logprobs=2, max_tokens=2))
    assert out.prompt_logprobs is not None
    assert len(out.prompt_logprobs) == len(ids)
    assert out.prompt_logprobs[0] is None
    for position, record in enumerate(out.prompt_logprobs[1:]):
        assert record is not None
        assert record.token_id == ids[position + 1]
        assert record.logprob == pytest.approx(float(expected[position, ids[position + 1]]), abs=1e-3)
        assert record.top_logprobs[0][0] == int(expected[position].argmax())


def test_end_tokens_and_the_context_end_a_sequence(model: Transformer, wanted: list[list[int]]) -> None:
    core = EngineCore(model, SMALL, None)
    third = wanted[2][2]
    [[out]] = run(core, [PROMPTS[2]], GREEDY.replace(max_tokens=COUNT, stop_ids=(third,)))
    assert out.finish_reason == "stop"
    assert out.ids == wanted[2][: wanted[2].index(third) + 1]
    assert out.stop_matched == third
    long = prompt(TINY["max_position_embeddings"] - 3, 1)
    [[out]] = run(core, [long], GREEDY.replace(max_tokens=100))
    assert (out.finish_reason, len(out.ids)) == ("length", 3)


def test_requests_that_cannot_be_served_are_refused(model: Transformer) -> None:
    core = EngineCore(model, SMALL, None)
    for ids, params, message in (
        ([], GREEDY, "empty"),
        ([TINY["vocab_size"]], GREEDY, "outside the vocabulary"),
        (prompt(TINY["max_position_embeddings"], 1), GREEDY, "no room"),
        ([1], GREEDY.replace(temperature=-1.0), "temperature"),
        ([1], GREEDY.replace(temperature=float("nan")), "temperature"),
        ([1], GREEDY.replace(top_p=0.0), "top_p"),
        ([1], GREEDY.replace(n=0), "n must"),
        ([1], GREEDY.replace(max_tokens=0), "max_tokens"),
        ([1], GREEDY.replace(logit_bias={TINY["vocab_size"]: 1.0}), "logit_bias"),
        ([1], GREEDY.replace(stop=("x",)), "tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            core.prepare("x", ids, params)
    core.add(core.prepare("x", [1], GREEDY))
    with pytest.raises(UsageError, match="in use"):
        core.add(core.prepare("x", [1], GREEDY))


def test_settings_that_do_not_fit_are_refused(model: Transformer) -> None:
    with pytest.raises(UsageError, match="holds no page"):
        EngineCore(model, replace(SMALL, cache_bytes=100), None)
    with pytest.raises(UsageError, match="no prediction layer"):
        EngineCore(perturbed(tiny_config(num_nextn_predict_layers=0)), replace(SMALL, draft_tokens=1), None)
    with pytest.raises(UsageError, match="draft_tokens"):
        EngineSettings(draft_tokens=40)
