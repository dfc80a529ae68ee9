"""What the tests of environments share: a vocabulary as small as the smallest recipe's, and a model played by text."""

import asyncio
import os
from pathlib import Path

import pytest

from glm5.agents.endpoint import ScriptedEndpoint
from glm5.environments.base import Environment, Reward, Task
from glm5.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """1024 tokens, learnt from some of the standard library."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    return Tokenizer.train([path.read_text(encoding="utf-8") for path in files], 1024)


@pytest.fixture
def grade():
    """`grade(environment, task, script)`: the reward; a text as script is what the model always answers."""

    def run(environment: Environment, task: Task, script) -> Reward:
        play = (lambda messages, tools: script) if isinstance(script, str) else script
        return asyncio.run(environment.run(task, ScriptedEndpoint(play)))

    return run
