"""Our own engine under reinforcement learning, and several engines together."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from glm5.engine.engine import Engine
from glm5.engine.records import SamplingParams
from glm5.engine.weights import WeightStore
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation
from glm5.rl.engines.local import LocalEngine
from glm5.rl.engines.pool import EnginePool
from glm5.rl.weights import WeightUpdate, hash_tensors
from tests.engine.lone import GREEDY, SMALL, alone, prompt
from tests.model.shapes import perturbed, tiny_config

IDS = prompt(30, 3)
LONG = GREEDY.replace(max_tokens=120)


@contextmanager
def local(name: str = "a", version: int = 0) -> Iterator[tuple[LocalEngine, Engine]]:
    engine = Engine(perturbed(tiny_config()), SMALL)
    try:
        yield LocalEngine(name, engine, version), engine
    finally:
        engine.close()


def weights(seed: int) -> dict[str, Tensor]:
    return dict(WeightStore(perturbed(tiny_config(), seed)).named_tensors())


def test_tokens_log_probabilities_and_versions() -> None:
    with local(version=40) as (engine, _):
        made = asyncio.run(engine.generate(IDS, GREEDY))
        again = asyncio.run(engine.generate(IDS, GREEDY))
        assert made.ids == again.ids == alone(perturbed(tiny_config()), IDS, 16)
        assert all(-20 < logprob < 0 for logprob in made.logprobs)
        assert (made.versions, made.finish_reason, made.cached_tokens) == ([40] * 16, "length", 0)
        assert again.cached_tokens >= 28


def test_an_update_in_the_middle_of_a_turn() -> None:
    """Tokens carry the trainer's version, and from the border on they are those of the new weights."""

    async def run(engine: LocalEngine) -> tuple[Generation, str]:
        asking = asyncio.create_task(engine.generate(IDS, LONG))
        await asyncio.sleep(0.1)
        found = await engine.update(WeightUpdate(weights(5)), 7)
        return await asking, found

    with local(version=3) as (engine, _):
        made, found = asyncio.run(run(engine))
    border = made.versions.index(7)
    assert made.versions == [3] * border + [7] * (120 - border)
    assert made.ids[:border] == alone(perturbed(tiny_config()), IDS, border)
    assert made.ids[border:] == alone(perturbed(tiny_config(), 5), IDS + made.ids[:border], 120 - border)
    assert found == hash_tensors(weights(5).items())


def test_deltas_build_on_the_version_that_is_served() -> None:
    old, new = weights(0), weights(0)
    new["model.norm.weight"] = new["model.norm.weight"] + 1
    delta = WeightUpdate.delta(old, new, base_version=0)
    assert list(delta.tensors) == ["model.norm.weight"]
    with local() as (engine, _):
        assert asyncio.run(engine.update(delta, 1)) == hash_tensors(new.items())
        with pytest.raises(UsageError, match="builds on version 0 and the engine has version 1"):
            asyncio.run(engine.update(delta, 2))
        assert asyncio.run(engine.weight_hash()) == hash_tensors(new.items())


def test_a_failed_update_never_passes_for_the_old_version() -> None:
    with local() as (engine, _):
        with pytest.raises(UsageError, match="no tensor 'nothing'"):
            asyncio.run(engine.update(WeightUpdate({**weights(5), "nothing": weights(5)["model.norm.weight"]}), 1))
        assert set(asyncio.run(engine.generate(IDS, GREEDY)).versions) == {1}
        assert asyncio.run(engine.update(WeightUpdate(weights(6)), 2)) == hash_tensors(weights(6).items())
        assert set(asyncio.run(engine.generate(IDS, GREEDY)).versions) == {2}


def test_a_cancelled_turn_gives_its_pages_back() -> None:
    async def run(engine: LocalEngine) -> None:
        asking = asyncio.create_task(engine.generate(IDS, LONG))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with local() as (engine, underneath):
        asyncio.run(run(engine))
        stats = underneath.stats()
        assert (stats.used_pages, stats.running, stats.waiting) == (0, 0, 0)
        underneath.check_accounting()


def test_a_dead_engine_leaves_the_pool_and_its_rollouts_move() -> None:
    async def run(pool: EnginePool, dead: Engine) -> None:
        homes = {rollout: (await pool.generate(rollout, IDS, GREEDY))[0] for rollout in "pqrstuvw"}
        assert set(homes.values()) == {"a", "b"}
        dead.close()
        moved = await asyncio.gather(*(pool.generate(rollout, IDS, GREEDY) for rollout in homes))
        assert {name for name, _ in moved} == {"b"}
        assert list(pool.engines) == ["b"]
        with pytest.raises(UsageError):
            await pool.generate("p", IDS, SamplingParams(temperature=-1))
        assert pool.router.total_reuse.cached_tokens > 0

    with local("a") as (first, underneath), local("b") as (second, other):
        pool = EnginePool([first, second])
        asyncio.run(run(pool, underneath))
        other.close()
        with pytest.raises(GLM5Error, match="no engine is left"):
            asyncio.run(pool.generate("p", IDS, GREEDY))
    with pytest.raises(UsageError, match="there is none"):
        EnginePool([])


def test_hashes_are_compared_after_an_update() -> None:
    with local("a") as (first, _), local("b") as (second, strayed):
        pool = EnginePool([first, second])
        full = WeightUpdate(weights(5))
        asyncio.run(pool.update(full, 1, hash_tensors(full.tensors.items())))
        strayed.update_weights({"model.norm.weight": weights(5)["model.norm.weight"] * 2})
        delta = WeightUpdate({"lm_head.weight": weights(6)["lm_head.weight"]}, base_version=1)
        wanted = hash_tensors({**full.tensors, **delta.tensors}.items())
        with pytest.raises(GLM5Error, match="b serve other weights than the trainer's"):
            asyncio.run(pool.update(delta, 2, wanted))
