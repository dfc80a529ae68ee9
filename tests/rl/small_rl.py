"""A model folder, an environment and settings as small as reinforcement learning can do with."""

from functools import cache
from pathlib import Path
from typing import Any

from glm5.environments.base import EnvironmentFailure, Reward, Task
from glm5.model.checkpoint import save_checkpoint
from glm5.recipe.rl import RLSection
from glm5.text.messages import Message
from tests.rl.gateway_helpers import tokenizer
from tests.train.small import small_model

ENVIRONMENT = f"{Path(__file__).resolve()}:Letters"


@cache
def _vocabulary() -> int:
    return tokenizer().vocab_size


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a model with random weights and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(small_model(seed, vocab_size=_vocabulary()), folder)
    tokenizer().save(folder)
    return folder


def settings(**changes: Any) -> RLSection:
    """Updates of four groups of four short rollouts; synchronous unless told otherwise."""
    values: dict[str, Any] = {
        "tasks": [{"environment": ENVIRONMENT, "held_out_tasks": 8}], "updates": 4, "prompts_per_step": 4,
        "samples_per_prompt": 4, "context_length": 64, "max_tokens": 8, "thinking": False, "lr_muon": 0.02,
        "lr_adamw": 0.02, "schedule": "constant", "dtype": "float32", "tokens_per_microbatch": 256,
        "staleness_bound": 0, "eval_every_updates": 1000, "save_every_updates": 2, "deadline_seconds": 60.0,
    }  # fmt: skip
    return RLSection.model_validate({**values, **changes})


class Letters:
    """Rewards small letters: what a model with random weights does now and then, and can learn to do always.

    `fault` makes it misbehave: "nan", "raise", "hang", "environment"; with `every`, only at each so-manieth task.
    """

    name = "small"

    def __init__(self, fault: str = "", every: int = 1, shuffled: bool = False) -> None:
        self.fault, self.every, self.shuffled = fault, every, shuffled

    def task(self, split: str, index: int) -> Task:
        kind = "even" if index % 2 == 0 else "odd"
        messages = (Message("user", f"{split} {index}"),)
        return Task(f"small/{split}/{index}", "small", messages, hidden={"index": index}, kind=kind)

    async def run(self, task: Task, endpoint: Any) -> Reward:
        import asyncio
        import zlib

        reply = await endpoint.chat(task.messages, thinking=False)
        text = reply.message.content
        if self.fault and task.hidden["index"] % self.every == 0:
            match self.fault:
                case "nan":
                    return Reward(float("nan"))
                case "raise":
                    raise ZeroDivisionError("the grader divides by zero")
                case "environment":
                    raise EnvironmentFailure("the sandbox is gone")
                case "hang":
                    await asyncio.sleep(3600)
        if self.shuffled:  # a reward that has nothing to do with what was done
            return Reward(float(zlib.crc32(f"{task.id} {text}".encode()) % 2))
        letters = sum(character.islower() for character in text)
        return Reward(letters / max(len(text), 1), {"letters": float(letters)}, text)

    async def close(self) -> None:
        pass
