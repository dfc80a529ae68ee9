"""Tools of a real MCP server, through the official client."""

import sys

import pytest

from glm5.agents.events import Observed
from glm5.errors import GLM5Error, UsageError
from tests.agents.code.conftest import call

SERVER = """
from mcp.server import MCPServer
from mcp.types import ToolAnnotations
server = MCPServer("weather")
@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def look(place: str) -> str:
    "How the weather is."
    return f"sunny in {place}"
@server.tool()
def change(place: str) -> str:
    "Make it rain."
    return "raining"
server.run()
"""


def test_tools_of_a_server(project):
    pytest.importorskip("mcp", reason="needs the package mcp (glm5[mcp])")
    (project.aside / "server.py").write_text(SERVER)
    spec = f"weather={sys.executable} {project.aside / 'server.py'}"
    steps = [call("weather__look", place="Paris"), call("weather__change", place="Paris")]
    project.run([*steps, call("finish", done=False, summary="")], mcp=(spec,))
    look, change, _ = project.events(Observed)
    assert (look.status, look.content) == ("ok", "sunny in Paris")
    assert change.status == "refused"
    assert any("weather__change" in finding for finding in project.findings)
    policy = project.aside / "policy.toml"
    policy.write_text('[[rule]]\nprogram = ["weather__change"]\naction = "allow"\n')
    project.run(
        [steps[1], call("finish", done=False, summary="")], mcp=(spec,), policy=policy, folder=project.aside / "b"
    )
    assert project.findings == []


def test_a_server_that_is_none(project):
    with pytest.raises(UsageError, match="name=command"):
        project.run([call("plan", steps="")], mcp=("weather",))
    with pytest.raises(GLM5Error, match=r"does not start|need the package"):
        project.run([call("plan", steps="")], mcp=("weather=/no/such/program",), folder=project.aside / "b")
