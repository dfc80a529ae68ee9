"""Tools of MCP servers, by the official client library.

A server is a program on this machine, outside any sandbox: what its tools do is known from their word only. So a call
of one is asked about like anything outside the project, unless the server calls the tool read-only or a rule of the
project allows it by name.
"""

import importlib
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from glm5.agents.outcomes import Result
from glm5.agents.tools.base import Desk
from glm5.errors import GLM5Error, UsageError
from glm5.text.messages import Tool


class McpTool:
    """One tool of a server; its name begins with the server's."""

    def __init__(self, server: str, raw: Any, session: Any) -> None:
        self.name = raw.name
        self.writes = not (raw.annotations is not None and raw.annotations.read_only_hint)
        self._spec = Tool(f"{server}__{raw.name}", raw.description or "", dict(raw.input_schema))
        self._session = session

    @property
    def spec(self) -> Tool:
        """What the server says about it."""
        return self._spec

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Call it; what is no text of its answer is named, not shown."""
        answer = await self._session.call_tool(self.name, dict(arguments))
        parts = [getattr(part, "text", None) or f"[{part.type}]" for part in answer.content]
        return Result("\n".join(parts), "failed" if answer.is_error else "ok")

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """No."""
        return False


@asynccontextmanager
async def open_servers(specs: Sequence[str]) -> AsyncIterator[list[McpTool]]:
    """Start servers and list their tools; they end with the `with`.

    Args:
        specs: `name=command with arguments`, one for each server.

    Raises:
        UsageError: a spec is none, or a server offers nothing.
        GLM5Error: the package `mcp` is not installed, or a server does not start.
    """
    tools: list[McpTool] = []
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        try:
            for spec in specs:
                tools += await _open(stack, *_parsed(spec))
            yield tools
        except Exception as error:  # kept until the servers have ended: the library would wrap it into a group
            failure = error
    if failure is not None:
        raise failure


def _parsed(spec: str) -> tuple[str, list[str]]:
    name, equals, command = spec.partition("=")
    if not equals or not name.isidentifier() or not command.strip():
        raise UsageError(f"an MCP server is given as name=command, not {spec!r}")
    return name, shlex.split(command)


async def _open(stack: AsyncExitStack, name: str, words: list[str]) -> list[McpTool]:
    try:
        mcp = importlib.import_module("mcp")
    except ImportError as error:
        raise GLM5Error("tools of MCP servers need the package mcp: pip install 'glm5[mcp]'") from error
    try:
        streams = await stack.enter_async_context(
            mcp.stdio_client(mcp.StdioServerParameters(command=words[0], args=words[1:]))
        )
        session = await stack.enter_async_context(mcp.ClientSession(*streams, read_timeout_seconds=60.0))
        await session.initialize()
        listed = await session.list_tools()
    except (OSError, mcp.MCPError) as error:
        raise GLM5Error(f"the MCP server {name!r} ({shlex.join(words)}) does not start: {error}") from error
    if not listed.tools:
        raise UsageError(f"the MCP server {name!r} offers no tools")
    return [McpTool(name, raw, session) for raw in listed.tools]
