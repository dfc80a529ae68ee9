"""The orchestrator on one event loop, with a scripted engine: what is started, what is handed out, what is lost."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm5.errors import GLM5Error
from glm5.recipe.rl import RLSection
from glm5.rl.engines.pool import EnginePool
from glm5.rl.engines.scripted import ScriptedRolloutEngine
from glm5.rl.gateway import Gateway, GatewaySettings
from glm5.rl.journal import Journal, Standing
from glm5.rl.orchestrator import STALE, Batch, Orchestrator
from glm5.rl.records import Trajectory
from glm5.rl.replay import RolloutLog, read_replay
from glm5.text.messages import Message
from tests.rl import small_rl
from tests.rl.gateway_helpers import tokenizer

WORDS = ["abc", "ABC", "a1", "x y z", "...", "lower", "UPPER Case"]


def replies(seed: int = 0) -> Iterator[Message]:
    rng = random.Random(seed)
    return (Message("assistant", rng.choice(WORDS)) for _ in itertools.count())


class Run:
    """An orchestrator in a folder, with what it needs."""

    def __init__(self, folder: Path, settings: RLSection, seconds: float = 0.0, **options: Any) -> None:
        self.engine = ScriptedRolloutEngine("e", tokenizer(), replies(), seconds=seconds)
        gateway_settings = GatewaySettings(context_length=64, max_tokens=32, enable_thinking=False)
        self.gateway = Gateway(EnginePool([self.engine]), tokenizer(), "glm-5", gateway_settings)
        self.journal, self.log = Journal(folder / "journal.jsonl"), RolloutLog(folder / "rollouts.jsonl")
        environments = {small_rl.ENVIRONMENT: small_rl.Letters(**options)}
        self.orchestrator = Orchestrator(settings, environments, self.gateway, self.journal, self.log)

    async def __aenter__(self) -> Orchestrator:
        self.producing = asyncio.create_task(self.orchestrator.produce())
        return self.orchestrator

    async def __aexit__(self, *_: object) -> None:
        self.producing.cancel()
        await self.orchestrator.close()
        self.log.close()


def names(batch: Batch) -> list[str]:
    return [group.name for group in batch.groups]


async def advance(run: Run, version: int) -> None:
    run.engine.script.version = version
    await run.orchestrator.advance(version)


@pytest.mark.parametrize(("bound", "push_every"), [(0, 1), (1, 1), (2, 1), (1, 2)])
def test_never_more_is_begun_than_the_bound_allows(tmp_path: Path, bound: int, push_every: int) -> None:
    settings = small_rl.settings(staleness_bound=bound, push_every=push_every, max_version_lag=16)

    async def main() -> None:
        async with (run := Run(tmp_path, settings)) as orchestrator:
            for update in range(1, 9):
                batch = await asyncio.wait_for(orchestrator.next_batch(), 20)
                assert batch.update == update
                assert len(batch.groups) == settings.prompts_per_step
                await asyncio.sleep(0.05)  # let it begin whatever it may
                most = (bound + orchestrator.version + 1) * settings.prompts_per_step * push_every
                assert orchestrator._accepted + len(orchestrator.running) <= most
                trained_on = (update - 1) // push_every
                for sample in batch.samples:
                    lag = trained_on - min(version for version in sample.versions if version >= 0)
                    assert 0 <= lag <= bound
                if update % push_every == 0:
                    await advance(run, update // push_every)

    asyncio.run(main())


def test_groups_are_whole_and_each_is_trained_once(tmp_path: Path) -> None:
    settings = small_rl.settings(staleness_bound=1)
    seen: list[str] = []

    async def main() -> None:
        async with (run := Run(tmp_path, settings)) as orchestrator:
            for update in range(1, 6):
                batch = await asyncio.wait_for(orchestrator.next_batch(), 20)
                seen.extend(names(batch))
                for group in batch.groups:
                    assert {sample.rollout_id for sample in group.samples} <= {f"{group.name}-{i}" for i in range(4)}
                    assert sum(sample.weight for sample in group.samples) == settings.samples_per_prompt
                    assert abs(sum(sample.advantage * sample.weight for sample in group.samples)) < 1e-6
                await advance(run, update)

    asyncio.run(main())
    assert len(seen) == len(set(seen)) == 20


def test_what_is_too_old_is_dropped_and_counted(tmp_path: Path) -> None:
    settings = small_rl.settings(staleness_bound=1, max_version_lag=2)

    async def main() -> None:
        async with (run := Run(tmp_path, settings)) as orchestrator:
            first = await asyncio.wait_for(orchestrator.next_batch(), 20)
            await asyncio.sleep(0.1)  # the second batch is made by version 0 too
            await advance(run, 5)
            second = await asyncio.wait_for(orchestrator.next_batch(), 20)
            assert second.dropped[STALE] >= settings.prompts_per_step
            assert not set(names(first)) & set(names(second))
            assert all(version in (-1, 5) for sample in second.samples for version in sample.versions)

    asyncio.run(main())
    assert Standing.of(Journal(tmp_path / "journal.jsonl")).stale


@pytest.mark.parametrize(
    ("fault", "words"),
    [("nan", "not a finite number"), ("raise", "ZeroDivisionError"), ("environment", "sandbox is gone")],
)
def test_a_fault_marks_the_rollout_and_the_run_goes_on(tmp_path: Path, fault: str, words: str) -> None:
    settings = small_rl.settings(staleness_bound=1)

    async def main() -> Batch:
        async with Run(tmp_path, settings, fault=fault, every=3) as orchestrator:
            return await asyncio.wait_for(orchestrator.next_batch(), 20)

    batch = asyncio.run(main())
    assert len(batch.groups) == settings.prompts_per_step
    trajectories = list(read_replay(tmp_path / "rollouts.jsonl", Trajectory))
    failed = [trajectory for trajectory in trajectories if trajectory.failure]
    assert failed
    assert all(words in trajectory.failure for trajectory in failed)
    trained = {sample.rollout_id for sample in batch.samples}
    assert not trained & {trajectory.rollout_id for trajectory in failed}


def test_an_environment_that_hangs_meets_the_deadline(tmp_path: Path) -> None:
    settings = small_rl.settings(staleness_bound=1, deadline_seconds=0.2)

    async def main() -> dict[str, int]:
        async with Run(tmp_path, settings, fault="hang", every=2) as orchestrator:
            await asyncio.wait_for(orchestrator.next_batch(), 20)
            await asyncio.sleep(0.5)
            return orchestrator.ledger.dropped

    assert asyncio.run(main())["deadline"] > 0


def test_when_nothing_works_the_run_stops_and_says_why(tmp_path: Path) -> None:
    settings = small_rl.settings(max_failures_in_a_row=10)

    async def main() -> None:
        async with Run(tmp_path, settings, fault="raise") as orchestrator:
            await asyncio.wait_for(orchestrator.next_batch(), 20)

    with pytest.raises(GLM5Error, match=r"rollouts in a row failed.*ZeroDivisionError"):
        asyncio.run(main())
    assert len(list(read_replay(tmp_path / "rollouts.jsonl", Trajectory))) >= 10


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    settings = small_rl.settings()

    async def main() -> tuple[list[Trajectory], int]:
        run = Run(tmp_path, settings)
        found = await run.orchestrator.evaluate(small_rl.ENVIRONMENT, 6, greedy=True, seed=0)
        await run.orchestrator.close()
        return found, len(list(Journal(tmp_path / "journal.jsonl")))

    found, events = asyncio.run(main())
    assert [trajectory.task_id for trajectory in found] == [f"small/held_out/{index}" for index in range(6)]
    assert all(trajectory.is_valid for trajectory in found)
    assert events == 0


def test_restored_from_a_journal_cut_anywhere(tmp_path: Path) -> None:
    """Whatever had happened when the run died: no group is trained twice, none that finished is lost or made again."""
    settings = small_rl.settings(staleness_bound=1)

    async def first() -> None:
        async with (run := Run(tmp_path / "whole", settings)) as orchestrator:
            for update in range(1, 4):
                await asyncio.wait_for(orchestrator.next_batch(), 20)
                await advance(run, update)
            await asyncio.sleep(0.05)

    (tmp_path / "whole").mkdir()
    asyncio.run(first())
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)

    async def again(folder: Path, done: int) -> tuple[list[Batch], Standing]:
        run = Run(folder, settings)
        standing = Standing.of(run.journal)
        trajectories = list(read_replay(folder / "rollouts.jsonl", Trajectory))
        # The engine had the newest version that any token shows.
        newest = max((v for t in trajectories for turn in t.turns for v in turn.versions), default=0)
        await run.orchestrator.restore(standing, trajectories, done, newest)
        run.engine.script.version = newest
        batches = []
        async with run:
            for _ in range(max(standing.batches, default=0) + 1 - done):
                batches.append(await asyncio.wait_for(run.orchestrator.next_batch(), 20))
                newest += 1
                await advance(run, newest)
        return batches, standing

    for cut in range(1, len(lines) + 1, 3):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text("".join(lines[:cut]))
        cut_off = Standing.of(Journal(folder / "journal.jsonl"))
        # A group's rollouts come after its beginning; of those in flight some may have finished.
        rollouts = (tmp_path / "whole" / "rollouts.jsonl").read_text().splitlines(keepends=True)
        there = [line for line in rollouts if json.loads(line)["group_id"] in cut_off.started]
        (folder / "rollouts.jsonl").write_text("".join(there))
        taken = cut_off.batches
        for done in range(len(taken) + 1):
            copy = tmp_path / f"cut{cut}-{done}"
            copy.mkdir()
            for name in ("journal.jsonl", "rollouts.jsonl"):
                (copy / name).write_bytes((folder / name).read_bytes())
            batches, standing = asyncio.run(again(copy, done))
            replayed, new = batches[:-1], batches[-1]
            assert [(batch.update, names(batch)) for batch in replayed] == [
                (number, groups) for number, groups in sorted(standing.batches.items()) if number > done
            ]
            assert new.update == max(standing.batches, default=0) + 1
            earlier = {name for groups in standing.batches.values() for name in groups} | standing.stale
            assert not earlier & set(names(new))
            written = [t.rollout_id for t in read_replay(copy / "rollouts.jsonl", Trajectory)]
            assert len(written) == len(set(written)), "a finished rollout was made again"
