"""The settings of demonstrations: conversations that environments make, for a model to be fine-tuned on."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from glm5.recipe.pretrain import Share
from glm5.recipe.sections import Count, Positive, Problem, Section


class DemonstrationSet(Section):
    """`[[demonstrations.sets]]`: one file, `OUTPUT/demonstrations/NAME.jsonl`."""

    name: str = Field(pattern=r"^[\w.-]+$", description="What the file is called. [ours]")
    environment: str = Field(min_length=1, description="Environment that makes them, as in RL. [ours]")
    options: dict[str, Any] = Field(default_factory=dict, description="What the environment itself is told. [ours]")
    count: Positive = Field(description="Conversations. [ours]")
    quality: Share = Field(
        0.5,
        description="Share that is done well; the rest is wrong in strategy, so that RL has something to do. [ours]",
    )
    seed: Count = Field(0, description="Of the draws. [ours]")


class DemonstrationsSection(Section):
    """`[demonstrations]`: generated conversations for fine-tuning, from the training split of environments."""

    sets: list[DemonstrationSet] = Field(min_length=1, description="The files.")

    def problems(self) -> Iterator[Problem]:
        """Every file has a name of its own."""
        for name, count in Counter(each.name for each in self.sets).items():
            if count > 1:
                yield Problem(("sets",), f"names '{name}' twice")
