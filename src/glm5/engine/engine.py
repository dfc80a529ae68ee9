"""The engine: requests from any thread or coroutine, computed by one worker thread.

    from glm5.engine.engine import Engine
    from glm5.engine.records import SamplingParams

    with Engine("checkpoint") as engine:
        [[completion]] = engine.generate(["Once upon a time"], SamplingParams(max_tokens=50))

Everything that touches the core is a task the worker runs between two steps, so nothing in the core needs a lock, and
an aborted request's pages are free before the next step begins.
"""

import asyncio
import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch import Tensor

from glm5.engine.core import EngineCore
from glm5.engine.records import Completion, Delta, EngineSettings, EngineStats, SamplingParams
from glm5.engine.sequence import Sequence as EngineSequence
from glm5.engine.weights import folder_tensors
from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.model.transformer import Transformer
from glm5.text.tokenizer import Tokenizer

T = TypeVar("T")
Item = Delta | GLM5Error


class Engine:
    """Serves one model. Close it, or use it as a context manager: it owns a thread."""

    def __init__(
        self,
        model: Transformer | Path | str,
        settings: EngineSettings | None = None,
        tokenizer: Tokenizer | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load and start.

        Args:
            model: a network (its weights are fused in place), or a checkpoint folder, whose tokenizer is used too.
            dtype: of the weights and of all arithmetic; as stored when absent.

        Raises:
            UsageError, GLM5Error: the folder is no checkpoint, or the settings do not fit the network.
        """
        if not isinstance(model, Transformer):
            folder = Path(model)
            if tokenizer is None and (folder / "tokenizer.json").exists():
                tokenizer = Tokenizer.load(folder)
            model = load_checkpoint(folder, dtype)
        elif dtype is not None:
            model.to(dtype)
        self.settings = settings or EngineSettings()
        self.tokenizer = tokenizer
        self._core = EngineCore(model, self.settings, tokenizer)
        self._tasks: deque[Callable[[], None]] = deque()
        self._sinks: dict[str, Callable[[Item], None]] = {}
        self._names = itertools.count()
        self._wakeup = threading.Condition()
        self._paused = self._closed = False
        self._worker = threading.Thread(target=self._work, name="glm5-engine", daemon=True)
        self._worker.start()

    # -- requests ------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Sequence[int] | str], params: SamplingParams | None = None
    ) -> list[list[Completion]]:
        """Complete every prompt; for each, its `params.n` completions.

        Raises:
            UsageError: see `EngineCore.prepare`; nothing has been computed then.
            GLM5Error: the engine failed or was closed.
        """
        params = params or SamplingParams()
        arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        names = [self._new_name() for _ in prompts]
        requests = [self._core.prepare(name, self._ids(prompt), params) for name, prompt in zip(names, prompts)]
        results = {name: [Completion(index) for index in range(params.n)] for name in names}

        def add() -> None:
            for sequences in requests:
                self._add(sequences, arrived.put)

        def abort() -> None:
            for name in names:
                self._abort(name)

        self._call(add)
        open_sequences = sum(len(sequences) for sequences in requests)
        try:
            while open_sequences:
                item = arrived.get()
                if isinstance(item, GLM5Error):
                    raise item
                results[item.sequence_id][item.index].add(item)
                open_sequences -= item.finish_reason is not None
        finally:
            if open_sequences and not self._closed:
                self._call(abort)
        return [results[name] for name in names]

    async def stream(
        self, prompt: Sequence[int] | str, params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Tokens as they are made; ends when all `params.n` completions have. Leaving the loop aborts the request.

        Raises:
            UsageError: out of the first `anext`, see `EngineCore.prepare`.
            GLM5Error: the engine failed or was closed.
        """
        params = params or SamplingParams()
        name = request_id or self._new_name()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Item] = asyncio.Queue()

        def deliver(item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        ids = self._ids(prompt)
        sequences = await asyncio.to_thread(self._core.prepare, name, ids, params)  # a grammar may take its time
        added = self._post(lambda: self._add(sequences, deliver))
        open_sequences = params.n  # from here on, a reader who leaves takes the request with them
        try:
            await asyncio.wrap_future(added)
            while open_sequences:
                item = await arrived.get()
                if isinstance(item, GLM5Error):
                    raise item
                open_sequences -= item.finish_reason is not None
                yield item
        except GLM5Error:
            open_sequences = 0  # refused, or failed with all others: there is nothing to abort
            raise
        finally:
            if open_sequences and not self._closed:
                self._post(lambda: self._abort(name))

    def abort(self, request_id: str) -> None:
        """End a request; its readers get a last delta with finish reason "abort". Unknown ids are left alone: the
        request may have ended a moment ago."""
        self._call(lambda: self._abort(request_id))

    # -- the engine itself ---------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version of the weights: how many updates there have been."""
        return self._core.weights.version

    def stats(self) -> EngineStats:
        """Gauges and counters."""
        return self._call(self._core.stats)

    def check_accounting(self) -> None:
        """Raises GLM5Error if a page is lost or counted twice."""
        self._call(self._core.scheduler.check)

    def pause(self) -> None:
        """Stop computing after the step under way; requests are kept, new ones are accepted."""
        self._call(lambda: self._set_paused(True))

    def resume(self) -> None:
        """Compute again. Raises GLM5Error while the weights are discarded."""

        def resume() -> None:
            self._core.weights.require()
            self._set_paused(False)

        self._call(resume)

    def update_weights(self, source: Path | str | Mapping[str, Tensor]) -> int:
        """Write new weights between two steps. What was cached is forgotten; running requests go on with them.

        Args:
            source: a checkpoint folder, or tensors by their stored (Hugging Face) names, some or all.

        Returns:
            The new version, which every token made from now on carries.

        Raises:
            UsageError: an unknown name, a wrong shape, nothing to update, or see `load_checkpoint`.
        """
        tensors = source.items() if isinstance(source, Mapping) else folder_tensors(Path(source))
        return self._call(lambda: self._core.update_weights(tensors))

    def weight_hash(self) -> str:
        """Hash of the weights being served."""
        return self._call(self._core.weights.hash)

    def sleep(self, discard_weights: bool = False) -> None:
        """Pause and free the cache's memory; with `discard_weights` the weights' too, to be written anew after
        `wake`."""

        def sleep() -> None:
            self._set_paused(True)
            self._core.sleep(discard_weights)

        self._call(sleep)

    def wake(self) -> None:
        """Get the memory back and, if the weights are there, go on; else update them, then `resume`."""

        def wake() -> None:
            self._core.wake()
            self._set_paused(not self._core.weights.is_complete)

        self._call(wake)

    def close(self) -> None:
        """Stop the worker. Requests under way fail with GLM5Error."""
        if self._closed:
            return
        with self._wakeup:
            self._closed = True
            self._wakeup.notify()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the worker ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        while True:
            with self._wakeup:
                while not (self._closed or self._tasks or self._can_step()):
                    self._wakeup.wait()
                if self._closed:
                    break
            while self._tasks:
                self._tasks.popleft()()
            if self._can_step():
                self._step()
        self._fail_all(GLM5Error("the engine was closed"))
        while self._tasks:
            self._tasks.popleft()()

    def _can_step(self) -> bool:
        return not self._paused and self._core.has_work

    def _step(self) -> None:
        try:
            deltas = self._core.step()
        except Exception as error:
            self._fail_all(GLM5Error(f"the engine failed in a step: {error}"))
            return
        for delta in deltas:
            self._deliver(delta)
        if not self._core.has_work:
            self._core.scheduler.check()

    def _deliver(self, delta: Delta) -> None:
        self._sinks[delta.sequence_id](delta)
        if not self._core.knows(delta.sequence_id):
            del self._sinks[delta.sequence_id]

    def _fail_all(self, error: GLM5Error) -> None:
        for name, sink in list(self._sinks.items()):
            self._core.abort(name)
            sink(error)
        self._sinks.clear()

    def _add(self, sequences: list[EngineSequence], sink: Callable[[Item], None]) -> None:
        self._core.add(sequences)
        self._sinks[sequences[0].request_id] = sink

    def _abort(self, request_id: str) -> None:
        for delta in self._core.abort(request_id):
            self._deliver(delta)

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused

    def _post(self, task: Callable[[], T]) -> "Future[T]":
        """Have the worker run `task` between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked has gone
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        with self._wakeup:
            if self._closed:
                raise GLM5Error("the engine was closed")
            self._tasks.append(run)
            self._wakeup.notify()
        return future

    def _call(self, task: Callable[[], T]) -> T:
        return self._post(task).result()

    def _new_name(self) -> str:
        return f"request-{next(self._names)}"

    def _ids(self, prompt: Sequence[int] | str) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise UsageError("the prompt is text and the engine has no tokenizer: give token ids")
        return self.tokenizer.encode(prompt)
