"""What the tests of the server share: a small tokenizer, and servers that answer by script."""

from contextlib import ExitStack

import anthropic
import openai
import pytest

from glm5.server.scripted import ScriptedEngine
from glm5.text.tokenizer import Tokenizer
from tests.server.serving import running

TEXTS = ["the quick brown fox jumps over the lazy dog and looks at the weather in Paris. " * 4, '{"a": [1, 2, 3]}\n' * 9]


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture
def scripted(tokenizer):
    """`scripted(*replies, **settings)` starts a server; gives (running server, its engine)."""
    with ExitStack() as servers:

        def start(*replies, script=None, per_step=1, seconds=0.0, **settings):
            generation = settings.get("generation", "glm-5")
            engine = ScriptedEngine(
                tokenizer, script or replies, generation=generation, tokens_per_step=per_step, seconds_per_step=seconds
            )
            return servers.enter_context(running(engine, tokenizer, **settings)), engine

        yield start


@pytest.fixture
def openai_client():
    """`openai_client(server)`: the real client, pointed at it."""
    with ExitStack() as clients:
        yield lambda server, key="none": clients.enter_context(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)
        )


@pytest.fixture
def anthropic_client():
    """`anthropic_client(server)`: the real client, pointed at it."""
    with ExitStack() as clients:
        yield lambda server, key="none": clients.enter_context(
            anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=20)
        )
