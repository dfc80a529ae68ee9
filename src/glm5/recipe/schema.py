"""A whole recipe: the run's name and place, its stages, and one section of settings for each part of the work."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from glm5.recipe.demonstrations import DemonstrationsSection
from glm5.recipe.pretrain import PretrainSection
from glm5.recipe.rl import RLSection
from glm5.recipe.sections import (
    KINDS,
    SOURCE_SETS,
    Count,
    DataSection,
    ModelSection,
    Problem,
    Section,
    TokenizerSection,
)
from glm5.recipe.sft import SftSection
from glm5.recipe.toml import to_toml


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(min_length=1, description="What the run is called on its report.")
    output: Path = Field(strict=False, description="Folder for all the run makes, from where the command is started.")
    stages: list[str] = Field(min_length=1, description="What is done, in this order.")
    seed: Count = Field(0, description="Decides every random choice of the run. [ours]")
    threads: Count = Field(
        0, description="Threads of one process's numeric work; 0 leaves the library's choice. [ours]"
    )

    model: ModelSection = Field(description="The network.")
    tokenizer: TokenizerSection = Field(description="The vocabulary.")
    data: DataSection = Field(description="The documents.")
    pretrain: PretrainSection = Field(description="Pre-training.")
    demonstrations: DemonstrationsSection | None = Field(None, description="Conversations made by environments.")
    sft: SftSection | None = Field(None, description="Supervised fine-tuning.")
    reasoning_rl: RLSection | None = Field(None, description="Reasoning RL. [GLM-5 §3.2]")
    agentic_rl: RLSection | None = Field(None, description="Agentic RL. [GLM-5 §3.3]")
    general_rl: RLSection | None = Field(None, description="General RL. [GLM-5 §3.4]")
    distillation: RLSection | None = Field(None, description="On-policy cross-stage distillation. [GLM-5 §3.5]")

    def problems(self) -> Iterator[Problem]:
        """Rules between sections: the mixture draws from the sources there are, and forgets none."""
        for repeated in sorted({name for name in self.stages if self.stages.count(name) > 1}):
            yield Problem(("stages",), f"names '{repeated}' twice")
        for section in ("demonstrations", "sft", "reasoning_rl", "agentic_rl", "general_rl", "distillation"):
            stage = section.replace("_", "-")
            if stage in self.stages and getattr(self, section) is None:
                yield Problem(("stages",), f"names '{stage}', whose settings are missing: add a section [{section}]")
        weighed: set[str] = set()
        for index, phase in enumerate(self.pretrain.phases):
            weighed |= phase.weights.keys()
            for name in phase.weights:
                if name not in KINDS and (wrong := self.data.not_one_source(name)):
                    key = ("pretrain", "phases", index, "weights", name)
                    yield Problem(key, f"{wrong}; kinds may be weighed too: {', '.join(KINDS)}")
        if weighed.isdisjoint(KINDS):
            for name in self.data.sources:
                if name not in weighed and name not in SOURCE_SETS:
                    text = f"names '{name}', which no phase of pretrain.phases weighs; weight 0 only holds it out"
                    yield Problem(("data", "sources"), text)

    def to_toml(self) -> str:
        """This recipe as TOML, defaults included. Loading it gives an equal recipe."""
        return to_toml(self.model_dump(mode="json", exclude_none=True))
