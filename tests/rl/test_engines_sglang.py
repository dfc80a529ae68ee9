"""The SGLang client against its documented interface: a small server that refuses what the guide does not allow.

No SGLang runs here. The server knows the fields of `/generate`, `/pause_generation`, `/update_weights_from_disk`,
`/flush_cache` and `/continue_generation`, keeps their order (an update only while paused), and "samples" the position.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from starlette.responses import PlainTextResponse

from glm5.engine.records import Grammar, SamplingParams
from glm5.errors import GLM5Error, UsageError
from glm5.rl.engines.sglang import SglangEngine
from glm5.rl.weights import WeightUpdate, hash_tensors
from tests.server.serving import wait_until


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(Strict):
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop_token_ids: list[int]
    ignore_eos: bool
    skip_special_tokens: bool
    sampling_seed: int | None = None
    logit_bias: dict[str, float] | None = None


class Generate(Strict):
    input_ids: list[int]
    sampling_params: Sampling
    return_logprob: bool
    stream: bool


class Pause(Strict):
    mode: str


class Update(Strict):
    model_path: str
    weight_version: str
    flush_cache: bool


class Server:
    """Token n of a text is n + the value of the weight "w"; 0.02 s a token; id 50 is the end."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.paused = False
        self.running = 0
        self.refuse_update = False
        self.seeds: list[int | None] = []
        self.app = FastAPI()
        self.app.post("/generate")(self.generate)
        self.app.post("/pause_generation")(self.pause)
        self.app.post("/update_weights_from_disk")(self.update)
        self.app.post("/flush_cache")(self.flush)
        self.app.post("/continue_generation")(self.resume)
        self.app.get("/health")(self.health)

    async def generate(self, body: Generate) -> dict[str, Any]:
        asked = body.sampling_params
        if not body.return_logprob or asked.top_k == 0 or asked.max_new_tokens < 1:
            raise HTTPException(400, "not what the guide says")
        self.seeds.append(asked.sampling_seed)
        entries: list[tuple[float, int, None]] = []
        reason: dict[str, Any] = {"type": "length", "length": asked.max_new_tokens}
        self.running += 1
        for position in range(len(body.input_ids), len(body.input_ids) + asked.max_new_tokens):
            await asyncio.sleep(0.02)
            if self.paused:
                reason = {"type": "abort", "message": "paused"}
                break
            entries.append((-0.5 * self.value, int(position + self.value), None))
            if entries[-1][1] in asked.stop_token_ids:
                reason = {"type": "stop", "matched": entries[-1][1]}
                break
        self.running -= 1
        ids = [entry[1] for entry in entries]
        trimmed = ids[:-1] if reason["type"] == "stop" else ids  # as SGLang does with a matched stop token
        meta = {"finish_reason": reason, "cached_tokens": 2, "output_token_logprobs": entries}
        return {"text": "", "output_ids": trimmed, "meta_info": meta}

    async def pause(self, body: Pause) -> str:
        if body.mode not in ("abort", "retract", "in_place"):
            raise HTTPException(400, "no such mode")
        self.paused = True
        while self.running:
            await asyncio.sleep(0.005)
        return "Generation paused successfully."

    async def update(self, body: Update) -> dict[str, Any]:
        if not self.paused or self.running:
            raise HTTPException(400, "an update can only happen while nothing runs")
        if self.refuse_update:
            return {"success": False, "message": "shape mismatch", "num_paused_requests": 0}
        [file] = Path(body.model_path).glob("*.safetensors")
        assert (Path(body.model_path) / "config.json").exists()
        self.value = load_file(file)["w"].item()
        return {"success": True, "message": "", "num_paused_requests": 0}

    async def flush(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("Cache flushed.\n", 200 if not self.running else 400)

    async def resume(self) -> str:
        self.paused = False
        return "Generation continued successfully."

    async def health(self) -> PlainTextResponse:
        return PlainTextResponse("")


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(40)
        listener.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.tensor([0.0]), "frozen": torch.ones(2)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def server(checkpoint: Path) -> Iterator[tuple[Server, SglangEngine]]:
    server = Server(0.0)
    with listening(server.app) as url:
        yield server, SglangEngine("s", url, checkpoint, checkpoint.parent / "handover")


def test_a_generation(server: tuple[Server, SglangEngine]) -> None:
    async def run() -> None:
        _, engine = server
        assert await engine.health()
        made = await engine.generate([7] * 10, SamplingParams(max_tokens=5, stop_ids=(12,), logit_bias={3: -1.0}))
        assert (made.ids, made.finish_reason, made.cached_tokens) == ([10, 11, 12], "stop", 2)
        assert (made.logprobs, made.versions) == ([0.0] * 3, [0] * 3)
        cut = await engine.generate([7] * 10, SamplingParams(max_tokens=2))
        assert (cut.ids, cut.finish_reason) == ([10, 11], "length")
        await engine.close()
        assert await engine.health(), "an engine that was dropped can come back"
        await engine.close()

    asyncio.run(run())


def test_an_update_in_the_middle_of_a_generation(server: tuple[Server, SglangEngine]) -> None:
    """Nothing is lost or said twice, and every token is told apart by its version, though it came in two requests."""

    async def run() -> None:
        served, engine = server
        asking = asyncio.create_task(engine.generate([7] * 10, SamplingParams(max_tokens=30, seed=100)))
        await asyncio.sleep(0.2)
        update = WeightUpdate({"w": torch.tensor([1000.0])}, base_version=0)
        found = await engine.update(update, 1)
        assert found == hash_tensors([("w", torch.tensor([1000.0])), ("frozen", torch.ones(2))])
        made = await asking
        border = made.versions.index(1)
        assert 0 < border < 30
        assert made.versions == [0] * border + [1] * (30 - border)
        assert made.ids == [10 + n + (1000 if n >= border else 0) for n in range(30)]
        assert made.logprobs == [0.0] * border + [-500.0] * (30 - border)
        assert (made.finish_reason, served.seeds) == ("length", [100, 100 + border])
        with pytest.raises(UsageError, match="builds on version 0"):
            await engine.update(update, 2)
        await engine.update(WeightUpdate({"w": torch.tensor([5.0])}, base_version=1), 2)
        assert (await engine.generate([7], SamplingParams(max_tokens=1))).ids == [6]
        handed_over = sorted(path.name for path in (engine._folder).iterdir())
        assert handed_over == ["version-2"], "old weights are not kept for ever"
        await engine.close()

    asyncio.run(run())


def test_failures_are_told_and_leave_the_server_running(server: tuple[Server, SglangEngine], tmp_path: Path) -> None:
    async def run() -> None:
        served, engine = server
        served.refuse_update = True
        with pytest.raises(GLM5Error, match=r"did not load .* shape mismatch"):
            await engine.update(WeightUpdate({"w": torch.tensor([1.0])}), 1)
        assert engine.version == 0
        assert (await engine.generate([7], SamplingParams(max_tokens=1))).versions == [0]
        with pytest.raises(UsageError, match="grammar"):
            await engine.generate([7], SamplingParams(grammar=Grammar("regex", "a")))
        with pytest.raises(GLM5Error, match="status 400"):
            await engine.generate([7], SamplingParams(max_tokens=0))
        dead = SglangEngine("dead", "http://127.0.0.1:9", engine._checkpoint, tmp_path)
        assert not await dead.health()
        with pytest.raises(GLM5Error, match="dead: /generate: ConnectError"):
            await dead.generate([7], SamplingParams())
        with pytest.raises(UsageError, match="no checkpoint folder"):
            SglangEngine("x", "http://127.0.0.1:9", tmp_path / "nowhere", tmp_path)
        await dead.close()
        await engine.close()

    asyncio.run(run())
