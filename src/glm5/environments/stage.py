"""The stage that writes demonstrations, for the fine-tuning behind it."""

from glm5.environments.base import load_environment
from glm5.environments.demonstrate import write_demonstrations
from glm5.pipeline import StageContext, Summary


def demonstrations(context: StageContext) -> Summary:
    """Write every set of the recipe; returns how many conversations each has."""
    section = context.recipe.demonstrations
    assert section is not None, "the recipe was checked: a stage that is named has its section"
    summary: Summary = {}
    for each in section.sets:
        environment = load_environment(each.environment, each.options)
        path = context.folder / f"{each.name}.jsonl"
        summary[each.name] = write_demonstrations(environment, path, each.count, each.seed, each.quality)
    return summary
