"""The engine from outside: five lines of Python, many coroutines, hang-ups."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from glm5.engine.engine import Engine
from glm5.engine.records import Delta, SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.text.tokenizer import Tokenizer
from tests.engine.lone import GREEDY, SMALL, alone, prompt
from tests.model.shapes import perturbed, saved, tiny_config

IDS = prompt(25, 1)


def test_five_lines(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat. " * 20], 285)
    saved(tiny_config(vocab_size=285), tmp_path)
    tokenizer.save(tmp_path)
    with Engine(tmp_path, SMALL) as engine:
        [[completion], [other]] = engine.generate(["the cat", "the mat"], GREEDY)
    assert completion.finish_reason == other.finish_reason == "length"
    assert len(completion.ids) == 16


def test_text_without_a_tokenizer_is_refused() -> None:
    with Engine(perturbed(tiny_config()), SMALL) as engine, pytest.raises(UsageError, match="no tokenizer"):
        engine.generate(["text"])


def test_many_streams_of_which_a_third_hang_up() -> None:
    """Everybody who stays gets the tokens of a lone run, and no page is lost."""
    prompts = [prompt(5 + 7 * (number % 5), number % 5) for number in range(30)]
    wanted = [alone(perturbed(tiny_config()), ids, 12) for ids in prompts[:5]]
    chance = random.Random(0)

    async def client(engine: Engine, number: int) -> None:
        await asyncio.sleep(chance.random() / 20)
        ids = []
        stream = engine.stream(prompts[number], GREEDY.replace(max_tokens=12))
        async for delta in stream:
            ids += [token.token_id for token in delta.tokens]
            if number % 3 == 0 and len(ids) >= 3:
                await stream.aclose()
                return
        assert ids == wanted[number % 5]

    async def everybody(engine: Engine) -> None:
        cancelled = [asyncio.ensure_future(client(engine, number)) for number in range(30)]
        await asyncio.sleep(0.01)
        for task in cancelled[1::10]:  # some are cut off at any point, also while being added
            task.cancel()
        results = await asyncio.gather(*cancelled, return_exceptions=True)
        assert [error for error in results if isinstance(error, Exception)] == []

    with Engine(perturbed(tiny_config()), replace(SMALL, cache_bytes=1 << 18)) as engine:
        asyncio.run(everybody(engine))
        engine.check_accounting()
        stats = engine.stats()
        assert (stats.used_pages, stats.running, stats.waiting) == (0, 0, 0)
        assert engine.generate([IDS], GREEDY)[0][0].ids == alone(perturbed(tiny_config()), IDS, 16)


def test_abort_and_pause() -> None:
    async def use(engine: Engine) -> list[Delta]:
        engine.pause()
        stream = engine.stream(IDS, GREEDY.replace(max_tokens=400), request_id="mine")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        assert not first.done()
        assert engine.stats().waiting == 1
        engine.resume()
        deltas = [await first]
        engine.abort("mine")
        deltas += [delta async for delta in stream]
        engine.abort("mine")
        return deltas

    with Engine(perturbed(tiny_config()), SMALL) as engine:
        deltas = asyncio.run(use(engine))
        assert deltas[-1].finish_reason == "abort"
        assert len(deltas) < 100
        assert engine.stats().used_pages == 0


def test_refusals_come_out_of_the_first_step() -> None:
    async def first(engine: Engine, **how: object) -> None:
        await anext(engine.stream(IDS, SamplingParams(**how)))  # type: ignore[arg-type]

    with Engine(perturbed(tiny_config()), SMALL) as engine:
        with pytest.raises(UsageError, match="top_p"):
            asyncio.run(first(engine, top_p=7.0))
        with pytest.raises(UsageError, match="outside"):
            engine.generate([[10**6]])
        assert engine.stats().waiting == 0


def test_a_closed_engine_says_so() -> None:
    engine = Engine(perturbed(tiny_config()), SMALL)

    async def use() -> None:
        stream = engine.stream(IDS, GREEDY.replace(max_tokens=400))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        async for _ in stream:
            pass

    with pytest.raises(GLM5Error, match="closed"):
        asyncio.run(use())
    with pytest.raises(GLM5Error, match="closed"):
        engine.generate([IDS])
    engine.close()


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    """The failure is real: somebody replaced a weight by one of another shape behind the engine's back."""
    import torch

    model = perturbed(tiny_config())
    with Engine(model, SMALL) as engine:
        norm = model.model.norm.weight.data
        model.model.norm.weight.data = torch.ones(3)
        with pytest.raises(GLM5Error, match="failed in a step"):
            engine.generate([IDS], GREEDY)
        model.model.norm.weight.data = norm
        assert len(engine.generate([IDS], GREEDY)[0][0].ids) == 16
        assert engine.stats().used_pages == 0
