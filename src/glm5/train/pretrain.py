"""The pre-training stage: a recipe and a corpus become a base model (GLM-5 report §2.2–2.4).

train/stage.py says what lies in its folder; `baselines.json`, for the report, is pre-training's own.
"""

from pathlib import Path

from glm5.data.loader import MixtureLoader
from glm5.data.manifest import held_out_documents
from glm5.errors import UsageError
from glm5.model.config import ModelConfig
from glm5.model.presets import preset
from glm5.model.transformer import Transformer
from glm5.pipeline import StageContext, Summary
from glm5.recipe import Recipe
from glm5.text.tokenizer import Tokenizer
from glm5.train.baselines import score_baselines
from glm5.train.evaluate import lay_out, take_bytes
from glm5.train.parallel import World, work_together
from glm5.train.schedule import BatchSize
from glm5.train.stage import Plan, Samples, check_shared, joined, summary, train, write_json

_SAMPLE_TOKENS = 96


def pretrain(context: StageContext) -> Summary:
    """Run the stage, in as many processes as the recipe asks for, or in those torchrun started.

    Raises:
        KeyboardInterrupt: it was interrupted; everything up to the last step is saved.
        GLM5Error: training failed; the message says how, and what is kept.
    """
    recipe, folder = context.recipe, context.folder
    folder.mkdir(parents=True, exist_ok=True)
    work_together(_train, (recipe, context.run, folder), recipe.pretrain.processes)
    if not (folder / "model" / "config.json").exists():
        raise KeyboardInterrupt  # every process saved its step and left
    return summary(folder)


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The recipe's network with the tokenizer's vocabulary.

    Raises:
        UsageError: the tokenizer has more tokens than the network has rows.
    """
    config = preset(recipe.model.preset, **recipe.model.overrides)
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size = {config.vocab_size}:"
            " make it at least as large"
        )
    return config.replace("tokenizer", eos_token_id=tuple(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id)


def _train(recipe: Recipe, run: Path, folder: Path) -> None:
    """One process's part."""
    with joined(folder, recipe.threads) as world:
        train(_plan(recipe, run, folder, world), world)


def _plan(recipe: Recipe, run: Path, folder: Path, world: World) -> Plan:
    settings = recipe.pretrain
    start = settings.rows_per_step_start or settings.rows_per_step
    for name, rows in (("rows_per_step", settings.rows_per_step), ("rows_per_step_start", start)):
        check_shared(f"pretrain.{name}", rows, world)
    tokenizer = Tokenizer.load(run / "tokenizer")
    documents = take_bytes(held_out_documents(run / "data"), settings.eval_bytes)
    if world.is_first and not (folder / "baselines.json").exists():
        write_json(folder / "baselines.json", score_baselines(run / "data", tokenizer, documents))

    def network() -> Transformer:
        model = Transformer(model_config(recipe, tokenizer))
        model.init_weights(recipe.seed)
        return model

    return Plan(
        settings=settings,
        folder=folder,
        text_files=run / "tokenizer",
        tokenizer=tokenizer,
        network=network,
        batches=MixtureLoader(run / "data", settings.context_length, settings.phases, settings.tokens, recipe.seed),
        total_tokens=settings.tokens,
        warmup_steps=settings.warmup_steps,
        batch_size=BatchSize(start, settings.rows_per_step, settings.batch_warmup_tokens, world.size),
        rows_per_microbatch=settings.tokens_per_microbatch // settings.context_length,
        held_out=lay_out(documents, tokenizer, settings.context_length),
        samples=Samples(
            {text: [tokenizer.eos_id, *tokenizer.encode(text)] for text in settings.sample_prompts},
            ends=[tokenizer.eos_id],
            tokens=_SAMPLE_TOKENS,
        ),
    )
