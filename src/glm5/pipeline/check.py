"""Everything that can be known to be wrong before anything runs: a run must not fail in its third hour on a typo."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from glm5.errors import UsageError
from glm5.model.config import ModelConfig
from glm5.model.presets import preset
from glm5.pipeline.stages import STAGES, Stage
from glm5.recipe import PretrainSection, Recipe, SftSection


def validate(recipe: Recipe, origin: str = "recipe", stages: Mapping[str, Stage] = STAGES) -> Recipe:
    """Check what a recipe alone cannot know: that its stages exist, and that its network can be built and trained so.

    Returns:
        The recipe with the tokenizer's vocabulary size taken from the model where it was absent.

    Raises:
        UsageError: one line for each mistake, beginning with `origin`, the recipe's path.
    """
    mistakes = [f"stages: {_unknown('stage', name, stages)}" for name in recipe.stages if name not in stages]
    try:
        model = preset(recipe.model.preset, **recipe.model.overrides)
    except UsageError as error:
        mistakes += [f"[model] {line}" for line in str(error).splitlines()]
        raise UsageError("\n".join(f"{origin}: {mistake}" for mistake in mistakes)) from None
    vocab_size, pretrain = recipe.tokenizer.vocab_size, recipe.pretrain
    if vocab_size is not None and vocab_size > model.vocab_size:
        mistakes.append(f"tokenizer.vocab_size = {vocab_size} is above the model's vocab_size = {model.vocab_size}")
    mistakes += _unfit("pretrain", pretrain, model)
    if "sft" in recipe.stages and recipe.sft is not None and recipe.sft.checkpoint is None:
        mistakes += _unfit("sft", recipe.sft, model)
    if mistakes:
        raise UsageError("\n".join(f"{origin}: {mistake}" for mistake in mistakes))
    if vocab_size is None and recipe.tokenizer.path is None:
        trained = recipe.tokenizer.model_copy(update={"vocab_size": model.vocab_size})
        return recipe.model_copy(update={"tokenizer": trained})
    return recipe


def _unfit(name: str, section: PretrainSection | SftSection, model: ModelConfig) -> Iterator[str]:
    """What a training section asks of a network that cannot give it."""
    if section.context_length > model.max_position_embeddings:
        yield (
            f"{name}.context_length = {section.context_length} is above the model's"
            f" max_position_embeddings = {model.max_position_embeddings}"
        )
    if model.first_k_dense_replace < model.num_hidden_layers and model.n_routed_experts % section.processes:
        yield (
            f"{name}.processes = {section.processes} cannot share the model's"
            f" n_routed_experts = {model.n_routed_experts} evenly"
        )
    if section.mtp_steps and not model.num_nextn_predict_layers:
        yield (
            f"{name}.mtp_steps = {section.mtp_steps} needs a layer that the model does not have:"
            " set it to 0, or model.num_nextn_predict_layers to 1"
        )


def choose(recipe: Recipe, only: Collection[str] | None, skip: Collection[str]) -> list[str]:
    """The stages to run, in the recipe's order.

    Raises:
        UsageError: a name selects nothing, or nothing is left.
    """
    for name in (*(only or ()), *skip):
        if name not in recipe.stages:
            raise UsageError(f"this recipe: {_unknown('stage', name, recipe.stages)}")
    chosen = [name for name in recipe.stages if (only is None or name in only) and name not in skip]
    if not chosen:
        raise UsageError("no stage is left to run: every stage of the recipe is left out")
    return chosen


def check_inputs(recipe: Recipe, chosen: Sequence[str], stages: Mapping[str, Stage]) -> None:
    """See that every input is there, or made by a chosen stage before the one that needs it.

    Raises:
        UsageError: one is not; names the stage that makes it.
    """
    made: set[Path] = set()
    for name in chosen:
        for path in stages[name].inputs(recipe):
            if path not in made and not path.exists():
                makers = [maker.name for maker in stages.values() if path in maker.outputs(recipe)]
                hint = f"which stage '{makers[0]}' makes: run that first" if makers else "and no stage makes it"
                raise UsageError(f"stage '{name}' needs {path}, {hint}")
        made.update(stages[name].outputs(recipe))


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
    return f"there is no {kind} '{name}'; {hint}"
