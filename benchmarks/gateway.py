"""What the gateway adds to a rollout: milliseconds per request, and characters encoded beside rendering all again.

    python benchmarks/gateway.py [--rollouts 64] [--turns 8] [--json FILE]

The engine says the same after two seconds, whatever it is asked, so that requests come as they do from a real one;
what a request takes beyond that is the gateway's. CPU time is shown too, as it depends less on what else a machine
does. The HTTP row contains the clients' half, which has another process. Rendering all again is what a gateway does
that takes text in and gives text out.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import uvicorn
from rich.console import Console
from rich.table import Table

from glm5.engine.records import SamplingParams
from glm5.rl.engines.base import Generation
from glm5.rl.engines.pool import EnginePool
from glm5.rl.gateway import Gateway, GatewaySettings
from glm5.rl.gateway_http import gateway_app
from glm5.rl.records import Trajectory
from glm5.rl.weights import WeightUpdate
from glm5.text.messages import Message, Tool
from glm5.text.template import render_ids
from glm5.text.tokenizer import Tokenizer

ENGINE_SECONDS = 2.0
TARGET_MS = 5.0
TOOLS = (Tool("run", "Run a command.", {"type": "object", "properties": {"command": {"type": "string"}}}),)
REPLY = (
    "The test fails because the path is relative; I look at it.</think>I look at the file."
    "<tool_call>run<arg_key>command</arg_key><arg_value>sed -n 1,80p src/app.py</arg_value></tool_call><|observation|>"
)
RESULT = "".join(f"{line:3}  value = compute(items[{line}], limit={line * 7})\n" for line in range(40))
ASK = [Message("system", "You repair programs."), Message("user", "Make the tests pass. " * 40)]
Ask = Callable[[str, list[Message]], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that requests took beyond the engine's time, and that they kept a core busy."""

    way: str
    requests: int
    median: float
    p95: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Encoding:
    """A rollout of 128 turns: characters encoded, and milliseconds spent on making prompts."""

    way: str
    characters: int
    milliseconds: float


class Counter(Tokenizer):
    """Counts the characters it encodes."""

    characters = 0

    def encode(self, text: str | bytes, allow_special: bool = False) -> list[int]:
        """As `Tokenizer.encode`."""
        self.characters += len(text)
        return super().encode(text, allow_special)


class InstantEngine:
    """Says the same again and again, at no cost but `seconds`."""

    def __init__(self, ids: list[int], seconds: float) -> None:
        self.name = "instant"
        self._made = Generation(ids, [-0.5] * len(ids), [0] * len(ids), "stop")
        self._seconds = seconds

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """The same."""
        await asyncio.sleep(self._seconds)
        return self._made

    async def update(self, source: WeightUpdate, version: int) -> str:
        """There are no weights."""
        return ""

    async def weight_hash(self) -> str:
        """There are no weights."""
        return ""

    async def health(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """There is nothing to give back."""


def gateway(tokenizer: Tokenizer, seconds: float) -> Gateway:
    """With an engine that says the same again and again."""
    engine = InstantEngine(tokenizer.encode(REPLY, allow_special=True), seconds)
    return Gateway(EnginePool([engine]), tokenizer, "glm-5", GatewaySettings(1 << 20, 4096))


def opened(tokenizer: Tokenizer, seconds: float, count: int) -> Gateway:
    """A gateway with so many rollouts."""
    made = gateway(tokenizer, seconds)
    for number in range(count):
        made.open(Trajectory(f"rollout-{number}", "task", "bench", "group"))
    return made


async def rollouts(ask: Ask, count: int, turns: int) -> list[float]:
    """Milliseconds added to each request, of rollouts that begin one after the other."""
    added: list[float] = []

    async def one(number: int) -> None:
        name = f"rollout-{number}"
        await asyncio.sleep(ENGINE_SECONDS * number / count)
        history = list(ASK)
        for _ in range(turns):
            began = time.perf_counter()
            reply = await ask(name, history)
            added.append(1000 * (time.perf_counter() - began - ENGINE_SECONDS))
            history += [reply, Message("tool", RESULT, tool_call_id=reply.tool_calls[0].id)]

    await asyncio.gather(*(one(number) for number in range(count)))
    return added


def in_process(tokenizer: Tokenizer, count: int, turns: int) -> list[float]:
    """Agents in the gateway's process."""
    made = opened(tokenizer, ENGINE_SECONDS, count)

    async def ask(name: str, history: list[Message]) -> Message:
        return (await made.chat(name, history, TOOLS)).message

    return asyncio.run(rollouts(ask, count, turns))


def over_http(tokenizer: Tokenizer, count: int, turns: int) -> list[float]:
    """Agents with a client of the OpenAI surface."""
    made = opened(tokenizer, ENGINE_SECONDS, count)
    # With the protocol named, asyncio sends small packets at once, as it does for a server that binds its own port.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(count)
    server = uvicorn.Server(uvicorn.Config(gateway_app(made), log_level="error", lifespan="off", timeout_keep_alive=60))
    process = multiprocessing.get_context("fork").Process(target=server.run, args=([listener],), daemon=True)
    process.start()
    tools = [tool.to_openai() for tool in TOOLS]

    async def run() -> list[float]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=count)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

            async def ask(name: str, history: list[Message]) -> Message:
                body = {"messages": [message.to_openai() for message in history], "tools": tools}
                answer = await client.post(f"/rollouts/{name}/v1/chat/completions", json=body)
                return Message.from_openai(answer.raise_for_status().json()["choices"][0]["message"])

            return await rollouts(ask, count, turns)

    try:
        return asyncio.run(run())
    finally:
        process.terminate()
        process.join()


def latency(way: str, measure: Callable[[], list[float]]) -> Latency:
    """Median, 95th percentile, and the time of all processes per request."""
    began = sum(os.times()[:4])
    added = measure()
    cpu = 1000 * (sum(os.times()[:4]) - began) / len(added)
    return Latency(way, len(added), statistics.median(added), statistics.quantiles(added, n=20)[-1], cpu)


def encodings(tokenizer: Counter, turns: int = 128) -> list[Encoding]:
    """The gateway and rendering anew, on the same rollout."""
    made = gateway(tokenizer, 0.0)
    made.open(Trajectory("r", "task", "bench", "r"))
    history = list(ASK)
    snapshots = []

    async def run() -> None:
        for _ in range(turns):
            snapshots.append(list(history))
            reply = (await made.chat("r", history, TOOLS)).message
            history.extend([reply, Message("tool", RESULT, tool_call_id=reply.tool_calls[0].id)])

    before, began = tokenizer.characters, time.perf_counter()
    asyncio.run(run())
    ours = Encoding("token in, token out", tokenizer.characters - before, 1000 * (time.perf_counter() - began))
    before, began = tokenizer.characters, time.perf_counter()
    for snapshot in snapshots:
        render_ids(snapshot, tokenizer, TOOLS, clear_thinking=False)
    anew = Encoding("text in, text out", tokenizer.characters - before, 1000 * (time.perf_counter() - began))
    return [ours, anew]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64, help="at the same time")
    parser.add_argument("--turns", type=int, default=8, help="of each")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    tokenizer = Counter.train([REPLY, RESULT, ASK[1].content, "the quick brown fox. " * 9], 320)
    assert isinstance(tokenizer, Counter)
    latencies = [
        latency("in process", lambda: in_process(tokenizer, options.rollouts, options.turns)),
        latency("HTTP, client included", lambda: over_http(tokenizer, options.rollouts, options.turns)),
    ]
    encoded = encodings(tokenizer)

    console = Console()
    table = Table(title=f"{options.rollouts} concurrent rollouts of {options.turns} turns, engine {ENGINE_SECONDS} s")
    for column in ("way", "requests", "added ms, median", "p95", "CPU ms", f"median ≤ {TARGET_MS:.0f} ms"):
        table.add_column(column, justify="right")
    for each in latencies:
        met = "yes" if each.median <= TARGET_MS else "no"
        table.add_row(each.way, str(each.requests), f"{each.median:.2f}", f"{each.p95:.2f}", f"{each.cpu:.2f}", met)
    console.print(table)
    table = Table(title="one rollout of 128 turns")
    for column in ("way", "characters encoded", "ms"):
        table.add_column(column, justify="right")
    for row in encoded:
        table.add_row(row.way, f"{row.characters:,}", f"{row.milliseconds:.0f}")
    console.print(table)
    if options.json:
        results = {"latency": [asdict(each) for each in latencies], "encoding": [asdict(row) for row in encoded]}
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
