"""llama.cpp as a peer: its prebuilt binary from npm (`node-llama-cpp`), installed once into a folder of its own."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "3.22.1"
FOLDER = Path(tempfile.gettempdir()) / f"glm5-llamacpp-{VERSION}"


@dataclass(frozen=True, slots=True)
class Continuation:
    """One prompt's greedy tokens, and how long they took on one thread."""

    ids: list[int]
    prefill_seconds: float
    decode_seconds: float


def install() -> str | None:
    """Install it if it is not there; why it cannot be had, or None."""
    if not shutil.which("npm"):
        return "npm is not installed"
    if not (FOLDER / "done").exists():
        FOLDER.mkdir(exist_ok=True)
        packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}"]
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional", *packages]
        outcome = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
        if outcome.returncode:
            return f"npm install failed: {outcome.stderr.strip()[-300:]}"
        (FOLDER / "done").touch()
    return None


def continuations(model: Path, prompts: list[list[int]], count: int, flash: bool) -> list[Continuation]:
    """`count` greedy tokens behind each prompt.

    Args:
        flash: its fused attention: faster, and rounded otherwise than plain fp32.

    Raises:
        RuntimeError: with llama.cpp's own words if it fails.
    """
    script = FOLDER / "llamacpp.mjs"
    shutil.copyfile(Path(__file__).with_suffix(".mjs"), script)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts))
        command = ["node", str(script), str(model.resolve()), str(file), str(count), str(int(flash))]
        outcome = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"llama.cpp failed: {outcome.stderr.strip()[-500:]}")
    return [Continuation(**result) for result in json.loads(outcome.stdout.strip().splitlines()[-1])]
