"""Drafts change how fast tokens come, never which."""

from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
import torch

from glm5.engine.core import EngineCore
from glm5.engine.records import EngineSettings, SamplingParams
from glm5.model.config import ModelConfig
from glm5.model.transformer import Transformer
from tests.engine.lone import GREEDY, SMALL, prompt, run
from tests.model.shapes import SHAPES, perturbed, tiny_config

# A vocabulary so small that a random prediction layer is often right.
FEW_WORDS = 5
COUNT = 24


def small_vocabulary(**changes: object) -> ModelConfig:
    return tiny_config(vocab_size=FEW_WORDS, **changes)


def predictable(config: ModelConfig) -> Transformer:
    """A network whose next token depends on the last one alone, in a way its prediction layer knows."""
    model = perturbed(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()  # what is embedded arrives at the head unchanged
        assert model.mtp is not None
        width = config.hidden_size
        model.mtp.eh_proj.weight.zero_()
        model.mtp.eh_proj.weight[:, :width] = torch.eye(width)  # the prediction layer passes on the next embedding
        model.mtp.norm.weight.copy_(model.model.norm.weight)
        model.mtp.enorm.weight.fill_(1.0)
    return model


def prompts() -> list[list[int]]:
    return [[token % FEW_WORDS for token in prompt(length, length)] for length in (4, 15, 33, 60)]


@pytest.mark.parametrize("drafts", [3, "adaptive"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["tiny", "index-share"])
def test_the_same_tokens_with_and_without(name: str, temperature: float, drafts: Literal["adaptive"] | int) -> None:
    """At every temperature: a draft is accepted when it is the token that this position draws anyway."""
    params = SamplingParams(temperature=temperature, max_tokens=COUNT, seed=11, logprobs=0, ignore_eos=True)
    model = perturbed(small_vocabulary(**SHAPES[name], index_share_for_mtp_iteration=name != "tiny"))
    plain = run(EngineCore(model, SMALL, None), prompts(), params)
    core = EngineCore(model, replace(SMALL, draft_tokens=drafts), None)
    for [mine], [theirs] in zip(run(core, prompts(), params), plain):
        assert mine.ids == theirs.ids
        assert [t.logprob for t in mine.tokens] == pytest.approx([t.logprob for t in theirs.tokens], abs=1e-3)
    stats = core.stats()
    assert 0 < stats.accepted < stats.drafted
    assert stats.accepted_per_position[0] == max(stats.accepted_per_position)
    assert sum(stats.accepted_per_position) == stats.accepted


def test_right_drafts_save_steps() -> None:
    model = predictable(small_vocabulary())
    params = GREEDY.replace(max_tokens=COUNT)
    lone = EngineCore(model, SMALL, None)
    [[plain]] = run(lone, prompts()[:1], params)
    core = EngineCore(model, replace(SMALL, draft_tokens=3), None)
    [[drafted]] = run(core, prompts()[:1], params)
    assert drafted.ids == plain.ids
    stats = core.stats()
    assert stats.accepted == stats.drafted == drafted.accepted
    assert stats.acceptance_length > 3.5
    assert lone.stats().steps == COUNT
    assert stats.steps <= COUNT // 4 + 1


def test_drafts_adapt_to_acceptance() -> None:
    """To nothing where they are never right, to the most where they always are."""
    params = GREEDY.replace(max_tokens=100)
    how = replace(SMALL, draft_tokens="adaptive")
    hopeless = EngineCore(perturbed(tiny_config()), how, None)
    run(hopeless, [prompt(9, 1)], params)
    stats = hopeless.stats()
    assert stats.accepted <= 1
    assert 0 < stats.drafts < 20
    right = EngineCore(predictable(small_vocabulary()), how, None)
    run(right, prompts()[:1], params)
    assert right.stats().acceptance_length > 4


def test_draft_counts_in_a_completion_never_pass_its_length() -> None:
    core = EngineCore(predictable(small_vocabulary()), EngineSettings(cache_bytes=1 << 22, draft_tokens=4), None)
    for count in (1, 2, 3, 6):
        [[out]] = run(core, prompts()[:1], GREEDY.replace(max_tokens=count))
        assert len(out.ids) == count
        assert out.accepted < count


@pytest.mark.parametrize("drafts", [0, 3])
def test_sampling_keeps_the_distribution(drafts: int) -> None:
    """Chi-square of pairs of tokens against the network's own probabilities; 24 degrees of freedom, 1 in 10,000."""
    model = perturbed(small_vocabulary())
    ids = prompts()[0]
    draws = 500
    core = EngineCore(model, replace(SMALL, draft_tokens=drafts, max_sequences=250), None)
    params = SamplingParams(n=draws, seed=2, max_tokens=4, ignore_eos=True)
    [outs] = run(core, [ids], params)
    with torch.no_grad():
        first = model.logits(model(torch.tensor([ids])).hidden)[0, -1].softmax(-1)
        rows = torch.tensor([[*ids, token] for token in range(FEW_WORDS)])
        second = model.logits(model(rows).hidden)[:, -1].softmax(-1)
    counts = Counter((out.ids[0], out.ids[1]) for out in outs)
    statistic = 0.0
    for a in range(FEW_WORDS):
        for b in range(FEW_WORDS):
            expected = draws * float(first[a] * second[a, b])
            statistic += (counts[a, b] - expected) ** 2 / expected
    assert statistic < 59
    assert (core.stats().accepted > 0) == (drafts > 0)
