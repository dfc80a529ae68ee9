"""A core driven by hand, and what a request gives when it runs alone."""

from glm5.engine.core import EngineCore
from glm5.engine.generate import generate
from glm5.engine.records import Completion, EngineSettings, SamplingParams
from glm5.model.transformer import Transformer
from tests.model.shapes import tokens

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SMALL = EngineSettings(cache_bytes=1 << 22, page_size=4)


def prompt(length: int, seed: int) -> list[int]:
    return tokens(length, seed=seed).tolist()


def alone(model: Transformer, ids: list[int], count: int) -> list[int]:
    """The plain greedy continuation."""
    return generate(model, [ids], count, temperature=0)[0].ids


def drain(core: EngineCore, results: dict[str, list[Completion]] | None = None) -> dict[str, list[Completion]]:
    """Step until nothing is left; completions by request, in order of index."""
    results = {} if results is None else results
    while core.has_work:
        collect(core, results)
    core.scheduler.check()
    assert core.stats().used_pages == 0
    return results


def collect(core: EngineCore, results: dict[str, list[Completion]]) -> None:
    for delta in core.step():
        completions = results.setdefault(delta.sequence_id, [])
        while len(completions) <= delta.index:
            completions.append(Completion(len(completions)))
        completions[delta.index].add(delta)


def run(core: EngineCore, prompts: list[list[int]], params: SamplingParams) -> list[list[Completion]]:
    """Submit everything at once."""
    for number, ids in enumerate(prompts):
        core.add(core.prepare(f"run-{number}", ids, params))
    results = drain(core)
    return [results[f"run-{number}"] for number in range(len(prompts))]
