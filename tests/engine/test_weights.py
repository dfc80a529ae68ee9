"""Weights that change under running requests."""

from pathlib import Path

import pytest
import torch

from glm5.engine.core import EngineCore
from glm5.engine.engine import Engine
from glm5.engine.records import Completion
from glm5.engine.weights import WeightStore, folder_tensors
from glm5.errors import GLM5Error, UsageError
from tests.engine.lone import GREEDY, SMALL, alone, collect, drain, prompt, run
from tests.model.shapes import perturbed, saved, tiny_config

COUNT = 10
IDS = prompt(30, 3)


def test_tokens_carry_the_version_that_made_them_and_nothing_stale_is_used() -> None:
    """After an update the rest is what the new weights alone would continue with."""
    old, new = perturbed(tiny_config(), seed=0), perturbed(tiny_config(), seed=5)
    core = EngineCore(perturbed(tiny_config(), seed=0), SMALL, None)
    core.add(core.prepare("a", IDS, GREEDY.replace(max_tokens=COUNT)))
    results: dict[str, list[Completion]] = {}
    for _ in range(4):
        collect(core, results)
    assert core.update_weights(WeightStore(new).named_tensors()) == 1
    out = drain(core, results)["a"][0]
    assert [token.version for token in out.tokens] == [0] * 4 + [1] * 6
    assert out.ids[:4] == alone(old, IDS, 4)
    assert out.ids[4:] == alone(new, IDS + out.ids[:4], 6)
    [[again]] = run(core, [IDS], GREEDY.replace(max_tokens=COUNT))
    assert again.cached_tokens < 30  # only what was computed after the update
    assert again.ids == alone(new, IDS, COUNT)


def test_the_hash_tells_weights_apart() -> None:
    first, same, other = (WeightStore(perturbed(tiny_config(), seed=seed)) for seed in (0, 0, 1))
    assert first.hash() == same.hash() != other.hash()
    before = first.hash()
    first.update([("model.layers.1.mlp.experts.3.up_proj.weight", torch.zeros(48, 64))])
    assert first.hash() != before
    first.update(same.named_tensors())
    assert first.hash() == before
    assert first.version == 2


def test_an_update_from_a_folder(tmp_path: Path) -> None:
    saved(tiny_config(), tmp_path, seed=4)
    store = WeightStore(perturbed(tiny_config(), seed=0))
    store.update(folder_tensors(tmp_path))
    assert store.hash() == WeightStore(perturbed(tiny_config(), seed=4)).hash()


def test_wrong_updates_are_refused_and_counted() -> None:
    core = EngineCore(perturbed(tiny_config()), SMALL, None)
    for tensors, message in (
        ([("model.layers.9.mlp.nothing", torch.zeros(1))], "no tensor"),
        ([("model.norm.weight", torch.zeros(3))], "shape"),
        ([], "no tensors"),
    ):
        with pytest.raises(UsageError, match=message):
            core.update_weights(tensors)
    assert core.weights.version == 3


def test_sleep_frees_memory_and_wake_goes_on() -> None:
    model = perturbed(tiny_config())
    expected = alone(perturbed(tiny_config()), IDS, COUNT)
    with Engine(model, SMALL) as engine:
        params = GREEDY.replace(max_tokens=COUNT)
        assert engine.generate([IDS], params)[0][0].ids == expected
        engine.sleep()
        assert engine._core.cache._latent.numel() == 0
        engine.wake()
        [[out]] = engine.generate([IDS], params)
        assert (out.ids, out.cached_tokens) == (expected, 0)


def test_discarded_weights_must_come_back_whole() -> None:
    model, other = perturbed(tiny_config()), perturbed(tiny_config(), seed=5)
    tensors = dict(WeightStore(other).named_tensors())
    with Engine(model, SMALL) as engine:
        engine.sleep(discard_weights=True)
        assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == 0
        engine.wake()
        with pytest.raises(GLM5Error, match="discarded"):
            engine.resume()
        engine.update_weights({"model.norm.weight": tensors["model.norm.weight"]})
        with pytest.raises(GLM5Error, match="discarded"):
            engine.resume()
        assert engine.update_weights(tensors) == 2
        engine.resume()
        assert engine.generate([IDS], GREEDY.replace(max_tokens=COUNT))[0][0].ids == alone(other, IDS, COUNT)
        assert engine.weight_hash() == WeightStore(other).hash()
