"""What the tests of the server share: a small tokenizer, and servers that answer by script."""

from contextlib import ExitStack

import anthropic
import httpx
import openai
import pytest

from glm5.server.scripted import ScriptedEngine
from glm5.text.tokenizer import Tokenizer
from tests.server.serving import running

TEXTS = [
    "the quick brown fox jumps over the lazy dog and looks at the weather in Paris. " * 4,
    '{"a": [1, 2, 3]}\n' * 9,
]


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


@pytest.fixture(scope="session")
def http():
    """Plain HTTP; one client for all tests, because each costs a TLS context."""
    with httpx.Client(timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def openai_client():
    """`openai_client(server)`: the real client, pointed at it."""
    with openai.OpenAI(base_url="http://nowhere", api_key="none", max_retries=0, timeout=60) as client:
        yield lambda server, key="none": client.with_options(base_url=f"{server.url}/v1", api_key=key)


@pytest.fixture(scope="session")
def anthropic_client():
    """`anthropic_client(server)`: the real client, pointed at it."""
    with anthropic.Anthropic(base_url="http://nowhere", api_key="none", max_retries=0, timeout=60) as client:
        yield lambda server, key="none": client.with_options(base_url=server.url, api_key=key)
