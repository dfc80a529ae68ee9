"""`glm5 serve CHECKPOINT`: load a checkpoint, listen, and on a signal finish what is in flight before leaving."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI

from glm5.engine.records import EngineSettings
from glm5.errors import GLM5Error, UsageError
from glm5.server.app import create_app
from glm5.server.service import ServerSettings, Service
from glm5.text.markers import Generation
from glm5.text.tokenizer import Tokenizer

log = logging.getLogger("glm5.server")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    checkpoint: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Sequence[str] = (),
    model_names: Sequence[str] = (),
    context_length: int | None = None,
    generation: Generation = "glm-5",
    dtype: Literal["float32", "bfloat16"] | None = None,
    engine_settings: EngineSettings | None = None,
    drain_seconds: float = 30.0,
) -> None:
    """Serve a checkpoint until told to stop. The first signal drains, a second one leaves at once.

    Args:
        api_keys: clients need one of them; without any, everybody who reaches the port may use the model.
        model_names: names the model answers to; the checkpoint's folder name if there are none.
        context_length: tokens of prompt and answer; the model's own limit if None.
        dtype: to compute in; as stored if None.
        drain_seconds: how long requests in flight may take to finish.

    Raises:
        UsageError: a context longer than the model's, no tokenizer, an engine setting that cannot be.
        GLM5Error: the checkpoint cannot be read, or the port is taken.
    """
    import torch  # takes its time

    from glm5.engine.engine import Engine
    from glm5.model.checkpoint import read_config

    if not (checkpoint / "tokenizer.json").exists():
        raise UsageError(f"{checkpoint} has no tokenizer.json; the server needs one to read and write text")
    longest = read_config(checkpoint).max_position_embeddings
    if context_length is not None and not 0 < context_length <= longest:
        raise UsageError(f"a context of {context_length} tokens: the model has positions for 1 to {longest}")
    settings = ServerSettings(
        model_names=tuple(model_names) or (checkpoint.resolve().name,),
        context_length=context_length or longest,
        generation=generation,
        api_keys=tuple(api_keys),
    )
    if host not in _LOOPBACK and not api_keys:
        log.warning("listening on %s without an API key: everybody who reaches port %d may come in", host, port)
    tokenizer = Tokenizer.load(checkpoint)
    with Engine(checkpoint, engine_settings, tokenizer, None if dtype is None else getattr(torch, dtype)) as engine:
        app = create_app(engine, tokenizer, settings)
        print(f"{settings.model_names[0]}: http://{host}:{port}  (chat page, /v1 for clients)", file=sys.stderr)
        run(app, host, port, drain_seconds)


def run(app: FastAPI, host: str, port: int, drain_seconds: float) -> None:
    """Listen until a signal comes and the requests in flight are done. Raises GLM5Error when it cannot listen."""
    server = DrainingServer(app, host, port, drain_seconds)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way of saying that it could not start
        raise GLM5Error(f"cannot listen on {host}:{port}; is another server running there?") from error


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on answering `/health` (with 503) while it finishes what is in flight."""

    def __init__(self, app: FastAPI, host: str, port: int, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
        )
        self._service: Service = app.state.service
        self._drain_seconds = drain_seconds
        self._drain_task: asyncio.Task[None] | None = None  # kept so that it is not collected

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; at a second one, leave at once."""
        if self._service.gate.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.gate.draining = True
        self._drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        log.warning("finishing %d requests, then leaving", self._service.gate.in_flight)
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._service.gate.idle()
        except TimeoutError:
            log.warning("%d requests were not finished in time", self._service.gate.in_flight)
        self.should_exit = True
