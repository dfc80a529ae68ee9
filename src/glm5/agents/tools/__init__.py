"""The tools of an agent, each a small class; their words and schemas are in `prompts/tools.toml`."""

from glm5.agents.tools.base import AgentTool, Desk
from glm5.agents.tools.files import Edit, Read, Search, Write
from glm5.agents.tools.finish import Finish, Plan
from glm5.agents.tools.shell import Background, RunTests, Shell

__all__ = ["AgentTool", "Desk", "coding_tools"]


def coding_tools() -> list[AgentTool]:
    """Everything that work on a tree needs."""
    return [Shell(), Background(), Read(), Search(), Edit(), Write(), RunTests(), Plan(), Finish()]
