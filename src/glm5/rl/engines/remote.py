"""A rollout engine behind HTTP: what vLLM and SGLang have in common.

New weights go through a checkpoint folder that both sides see. An update in the middle of a generation:

    pause (aborts what runs, which returns its tokens so far) ── load ── resume ── the rest, with the new weights

So every token is known to be of the old or the new version, and no rollout waits for the slowest one or is lost. A
request that reaches the server between the pause and the load may be computed with the new weights and is then counted
as old, which errs on the safe side of the staleness bound.
"""

import asyncio
import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file, save_file

from glm5.engine.records import SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.base import Generation
from glm5.rl.weights import WeightUpdate, hash_tensors

_HEALTH_SECONDS = 5.0  # slime's default for its probes
_WEIGHTS = "model.safetensors"


class RemoteEngine(ABC):
    """A server of another engine.

    Attributes:
        version: of the weights that are served, as the trainer counts.
    """

    def __init__(
        self, name: str, url: str, checkpoint: Path, folder: Path, *, version: int = 0, timeout: float = 3600.0
    ) -> None:
        """Talk to the server at `url`.

        Args:
            checkpoint: the folder that the server was started with, whose weights are the trainer's `version`.
            folder: where weights are handed over; the server must see it under the same path.
            timeout: seconds that one generation may take.

        Raises:
            UsageError: `checkpoint` is no checkpoint folder.
        """
        if not (checkpoint / "config.json").exists() or not list(checkpoint.glob("*.safetensors")):
            raise UsageError(f"{checkpoint} is no checkpoint folder: it needs config.json and *.safetensors")
        self.name = name
        self.version = version
        self._checkpoint = checkpoint
        self._folder = folder
        self._served = checkpoint  # the folder with the weights that are served
        self._url = url
        self._timeout = timeout
        self._connections: httpx.AsyncClient | None = None  # opened at need, so that an engine can come back
        self._pauses = 0
        self._running = asyncio.Event()
        self._running.set()
        self._updating = asyncio.Lock()

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """See `RolloutEngine`. Continues across updates, each token with its version."""
        refuse_unsupported(type(self).__name__, params)
        ids: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        cached: int | None = None
        while True:
            await self._running.wait()
            version, pauses = self.version, self._pauses
            left = params.replace(
                max_tokens=params.max_tokens - len(ids),
                seed=None if params.seed is None else params.seed + len(ids),
            )
            part = await self._complete(prompt_ids + ids, left, version)
            ids += part.ids
            logprobs += part.logprobs
            versions += part.versions
            cached = part.cached_tokens if cached is None else cached
            paused = part.finish_reason == "abort" and self._pauses > pauses
            if not paused or len(ids) >= params.max_tokens:
                reason = "length" if paused else part.finish_reason
                return Generation(ids, logprobs, versions, reason, min(cached, len(prompt_ids)))

    async def update(self, source: WeightUpdate, version: int) -> str:
        """See `RolloutEngine`. The hash is that of the files the server was told to load."""
        async with self._updating:
            source.check_base(self.version)
            target = self._folder / f"version-{version}"
            await asyncio.to_thread(self._write, source, target)
            self._pauses += 1
            self._running.clear()
            try:
                await self._pause()
                await self._load(target, version)
            except BaseException:  # cancelled or failed, which is what has to be told
                with contextlib.suppress(GLM5Error):
                    await self._resume()
                raise
            else:
                self.version = version
                before, self._served = self._served, target
                await self._resume()
            finally:
                self._running.set()
            if before not in (self._checkpoint, target):
                await asyncio.to_thread(shutil.rmtree, before)
            return await self.weight_hash()

    async def weight_hash(self) -> str:
        """Hash of the checkpoint that is served, read back from the disk."""
        return await asyncio.to_thread(lambda: hash_tensors(_tensors(self._served).items()))

    async def health(self) -> bool:
        """Whether the server answers `/health` in time."""
        try:
            return (await self._client.get("/health", timeout=_HEALTH_SECONDS)).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        """Close the connections; the server goes on, and the next call opens them anew."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    @abstractmethod
    async def _complete(self, prompt_ids: list[int], params: SamplingParams, version: int) -> Generation:
        """One request for one completion; "abort" when a pause ended it, with the tokens so far."""

    @abstractmethod
    async def _pause(self) -> None:
        """Abort what runs and start nothing new."""

    @abstractmethod
    async def _load(self, folder: Path, version: int) -> None:
        """Load the weights of a checkpoint folder, and forget what was cached of the old ones."""

    @abstractmethod
    async def _resume(self) -> None:
        """Serve again."""

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._connections is None:
            self._connections = httpx.AsyncClient(
                base_url=self._url,
                timeout=httpx.Timeout(self._timeout, connect=10.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            )
        return self._connections

    async def _post(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """The JSON that the server answers, None for an empty answer. Raises GLM5Error."""
        try:
            response = await self._client.post(path, json=body, params=query)
        except httpx.HTTPError as error:
            raise GLM5Error(f"engine {self.name}: {path}: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code != 200:
            raise GLM5Error(f"engine {self.name}: {path} gave status {response.status_code}: {response.text[:500]}")
        try:
            return json.loads(response.text) if response.text else None
        except ValueError:
            return response.text  # some control routes answer in prose

    def _write(self, source: WeightUpdate, target: Path) -> None:
        """Write a checkpoint folder with the weights, and everything else as in the first."""
        tensors = dict(source.tensors) if source.base_version is None else {**_tensors(self._served), **source.tensors}
        target.mkdir(parents=True, exist_ok=True)
        for file in self._checkpoint.iterdir():
            if file.is_file() and ".safetensors" not in file.name:
                shutil.copy(file, target / file.name)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, target / _WEIGHTS)


def refuse_unsupported(engine: str, params: SamplingParams) -> None:
    """Raises UsageError naming what these servers cannot be asked for in this way."""
    wanted = {
        "n above 1": params.n != 1,
        "a grammar (tool_choice, response_format)": params.grammar is not None,
        "thinking_budget": params.thinking_budget is not None,
        "repetition_guard": params.repetition_guard is not None,
        "prompt_logprobs": params.prompt_logprobs is not None,
        "stop texts": bool(params.stop),
    }
    if missing := [what for what, is_wanted in wanted.items() if is_wanted]:
        raise UsageError(f"{engine} cannot do {', '.join(missing)}; use our own engine for it")


def _tensors(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
