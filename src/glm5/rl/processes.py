"""The three kinds of process of an RL run, as Ray actors: rollout engine, trainer rank, orchestrator.

Each is a thin shell around something that needs no Ray: `LocalEngine`, `Learner`, and `Orchestrator` with its gateway
and engine pool. Rollout engines belong to the orchestrator, which replaces those that die.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from glm5.engine.engine import Engine
from glm5.engine.records import EngineSettings, SamplingParams
from glm5.environments.base import load_environment
from glm5.errors import GLM5Error
from glm5.recipe.rl import EngineSection, RLSection
from glm5.rl.engines.base import Generation, RolloutEngine
from glm5.rl.engines.local import LocalEngine
from glm5.rl.engines.sglang import SglangEngine
from glm5.rl.engines.vllm import VllmEngine
from glm5.rl.gateway import Gateway, GatewaySettings
from glm5.rl.journal import Journal, Standing
from glm5.rl.learner import Learner, UpdateReport
from glm5.rl.metrics import SpanRecord
from glm5.rl.orchestrator import Batch, Orchestrator
from glm5.rl.records import TrainingSample, Trajectory
from glm5.rl.replay import RolloutLog, read_replay
from glm5.rl.snapshot import Counters
from glm5.rl.supervised import SupervisedPool
from glm5.rl.weights import WeightUpdate, hash_tensors
from glm5.text.tokenizer import Tokenizer
from glm5.train.parallel import World

_MANY = 100_000  # calls one actor may have open


# -- rollout engines -------------------------------------------------------------------------------------------------


class EngineProcess:
    """One of our engines in a process of its own."""

    def __init__(self, name: str, checkpoint: Path, section: EngineSection) -> None:
        threads = section.threads or None
        settings = EngineSettings(
            cache_bytes=section.cache_bytes, max_batch_tokens=section.max_batch_tokens,
            max_sequences=section.max_sequences, draft_tokens=section.draft_tokens,
            batch_invariant=section.batch_invariant, threads=threads,
        )  # fmt: skip
        self.core = Engine(checkpoint, settings, dtype=getattr(torch, section.dtype))
        self.engine = LocalEngine(name, self.core)

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        return await self.engine.generate(prompt_ids, params)

    async def update(self, source: WeightUpdate, version: int) -> str:
        return await self.engine.update(source, version)

    async def score(self, ids: list[int]) -> list[float]:
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        async with aclosing(self.core.stream(ids, params)) as deltas:
            async for delta in deltas:
                if delta.prompt_logprobs:
                    scores = [token.logprob if token is not None else 0.0 for token in delta.prompt_logprobs]
                    return [0.0 if score is None else score for score in scores]
        raise GLM5Error("a teacher gave no log-probabilities")

    async def weight_hash(self) -> str:
        return await self.engine.weight_hash()

    async def acceptance_length(self) -> float:
        return (await asyncio.to_thread(self.core.stats)).acceptance_length

    async def pid(self) -> int:
        return os.getpid()


class RayEngine:
    """A `RolloutEngine` that is an `EngineProcess` elsewhere."""

    def __init__(self, name: str, checkpoint: Path, section: EngineSection) -> None:
        self.name = name
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        actor = ray.remote(EngineProcess).options(num_cpus=0, num_gpus=gpus, max_concurrency=_MANY)
        self.process = actor.remote(name, checkpoint, section)

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """Continue a prompt. Raises GLM5Error when the process has died."""
        return await self._ask(self.process.generate.remote(prompt_ids, params))

    async def update(self, source: WeightUpdate, version: int) -> str:
        """Write weights; returns their hash."""
        return await self._ask(self.process.update.remote(source, version))

    async def score(self, ids: list[int]) -> list[float]:
        """Log-probability of every token but the first, which has none (0.0), under the engine's weights."""
        return await self._ask(self.process.score.remote(ids))

    async def weight_hash(self) -> str:
        """Of the weights being served."""
        return await self._ask(self.process.weight_hash.remote())

    async def acceptance_length(self) -> float:
        """Tokens a speculative step yields."""
        return await self._ask(self.process.acceptance_length.remote())

    async def health(self) -> bool:
        """Whether the process answers."""
        await self.pid()
        return True

    async def pid(self) -> int:
        """Of the process."""
        return await self._ask(self.process.pid.remote())

    async def close(self) -> None:
        """End the process."""
        ray.kill(self.process)

    async def _ask(self, answer: Any) -> Any:
        try:
            return await answer
        except RayActorError as error:
            raise GLM5Error(f"rollout engine {self.name} has died") from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, GLM5Error) else error from error


# -- trainer ranks ---------------------------------------------------------------------------------------------------


class LearnerProcess:
    """One trainer rank."""

    def __init__(self, settings: RLSection, checkpoint: Path, folder: Path, rank: int, size: int, port: int) -> None:
        if settings.trainer_threads:
            torch.set_num_threads(settings.trainer_threads)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        self.learner = Learner(settings, checkpoint, folder, World.join())
        self.pushed: dict[str, torch.Tensor] = {}
        self.pushed_version = -1

    def updates(self) -> int:
        return self.learner.updates

    def update(self, samples: list[TrainingSample]) -> UpdateReport:
        return self.learner.update(samples)

    def weights(self, version: int, delta: bool) -> tuple[WeightUpdate, WeightUpdate | None, str]:
        """All tensors, those changed since the push before if wanted and known, and the hash."""
        weights = self.learner.weights()
        change = None
        if delta and self.pushed and self.pushed_version == version - 1:
            change = WeightUpdate.delta(self.pushed, weights, version - 1)
        self.pushed, self.pushed_version = weights, version
        return WeightUpdate(weights), change, hash_tensors(weights.items())

    def save(self) -> str:
        return str(self.learner.save())

    def publish(self) -> None:
        self.learner.publish()

    def fingerprint(self) -> dict[str, float]:
        return self.learner.fingerprint()

    def pid(self) -> int:
        return os.getpid()


# -- the orchestrator ------------------------------------------------------------------------------------------------


class OrchestratorProcess:
    """Environments, gateway, engine pool and the orchestrator itself, on one event loop."""

    def __init__(self, settings: RLSection, checkpoint: Path, folder: Path, seed: int) -> None:
        self.settings, self.checkpoint, self.folder, self.seed = settings, checkpoint, folder, seed
        self.spans: list[SpanRecord] = []
        self.began = time.time()

    async def open(self, teachers: Mapping[str, Path]) -> None:
        """Load environments and start engines; `teachers` by environment."""
        settings = self.settings
        torch.set_num_threads(1)
        environments = {task.environment: load_environment(task.environment, task.options) for task in settings.tasks}
        ours = settings.engine.kind == "glm5"
        self.pool = SupervisedPool(self._engines(), self._start if ours else None, self.spans.append)
        gateway_settings = GatewaySettings(
            context_length=settings.context_length, max_tokens=settings.max_tokens, temperature=settings.temperature,
            enable_thinking=settings.thinking,
        )  # fmt: skip
        self.gateway = Gateway(self.pool, Tokenizer.load(self.checkpoint), "glm-5", gateway_settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = RolloutLog(self.folder / "rollouts.jsonl")
        self.journal = Journal(self.folder / "journal.jsonl")
        self.teachers = {
            name: RayEngine(f"teacher of {name}", path, settings.engine) for name, path in teachers.items()
        }
        self.orchestrator = Orchestrator(
            settings, environments, self.gateway, self.journal, self.log, self.seed,
            {name: engine.score for name, engine in self.teachers.items()},
        )  # fmt: skip
        self.background = [asyncio.create_task(self.pool.watch())]

    async def restore(self, update: int, version: int) -> None:
        """Go on from the journal, if there is one."""
        path = self.folder / "rollouts.jsonl"
        trajectories = list(read_replay(path, Trajectory)) if path.stat().st_size else []
        await self.orchestrator.restore(Standing.of(self.journal), trajectories, update, version)

    async def start(self) -> None:
        """Begin to make rollouts."""
        self.background.append(asyncio.create_task(self.orchestrator.produce()))

    async def next_batch(self) -> Batch:
        return await self.orchestrator.next_batch()

    async def batches(self, after: int, before: int) -> list[Batch]:
        """What updates between the two were made of; for a trainer that has lost them."""
        trajectories = list(read_replay(self.folder / "rollouts.jsonl", Trajectory))
        return await self.orchestrator.rebuild(Standing.of(self.journal), trajectories, after, before)

    async def push(self, whole: WeightUpdate, delta: WeightUpdate | None, version: int, expected: str) -> None:
        """Give all engines the weights of `version`, then let rollouts begin with them."""
        await self.pool.push(whole, delta, version, expected)
        await self.orchestrator.advance(version)

    async def evaluate(self, environment: str, tasks: int, greedy: bool, seed: int) -> list[Trajectory]:
        return await self.orchestrator.evaluate(environment, tasks, greedy=greedy, seed=seed)

    async def pause(self, paused: bool) -> None:
        await self.orchestrator.pause(paused)

    async def counters(self) -> Counters:
        """Where everything stands, taken at one moment."""
        orchestrator, pool = self.orchestrator, self.pool
        reuse = pool.router.total_reuse
        return Counters(
            version=orchestrator.version, queued=len(orchestrator.queue), running=len(orchestrator.running),
            rollouts=orchestrator.active_rollouts, generating=pool.in_flight, room=max(orchestrator.room, 0),
            engines=len(pool.engines), engines_lost=pool.lost, prompt_tokens=reuse.prompt_tokens,
            cached_tokens=reuse.cached_tokens, sampled_tokens=orchestrator.sampled_tokens,
            dropped=dict(orchestrator.ledger.dropped), why_no_rollouts=orchestrator.waiting_for(),
        )  # fmt: skip

    async def acceptance_length(self) -> float:
        """Of the first engine of ours."""
        engine = next(iter(self.pool.engines.values()))
        return await engine.acceptance_length() if isinstance(engine, RayEngine) else 1.0

    async def take_spans(self) -> list[SpanRecord]:
        """What engines did since the last call."""
        spans = list(self.spans)
        self.spans.clear()
        return spans

    async def engine_pids(self) -> dict[str, int]:
        """Processes of our engines, by name."""
        engines = {name: engine for name, engine in self.pool.engines.items() if isinstance(engine, RayEngine)}
        return {name: await engine.pid() for name, engine in engines.items()}

    async def close(self) -> None:
        """Stop rollouts, close environments, end engines."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self.orchestrator.close()
        self.log.close()
        await self.pool.close()
        for teacher in self.teachers.values():
            await teacher.close()

    async def pid(self) -> int:
        return os.getpid()

    def _engines(self) -> list[RolloutEngine]:
        section = self.settings.engine
        match section.kind:
            case "vllm":
                return [VllmEngine(url, url, self.checkpoint, self.folder / "pushed") for url in section.urls]
            case "sglang":
                return [SglangEngine(url, url, self.checkpoint, self.folder / "pushed") for url in section.urls]
        return [self._start(f"engine {number}") for number in range(section.count)]

    def _start(self, name: str) -> RayEngine:
        return RayEngine(name, self.checkpoint, self.settings.engine)
