"""The two stages that make what a training reads: a tokenizer and a corpus."""

import shutil
from pathlib import Path

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from glm5.data.corpus import build_corpus
from glm5.data.sampling import sample_texts
from glm5.pipeline import StageContext, Summary
from glm5.text.template import template_source
from glm5.text.tokenizer import Tokenizer


def train_tokenizer(context: StageContext) -> Summary:
    """Learn a vocabulary from the training side of the recipe's sources, or take the one it names."""
    settings, data = context.recipe.tokenizer, context.recipe.data
    if settings.path is not None:
        tokenizer = Tokenizer.load(settings.path)
    else:
        assert settings.vocab_size is not None, "pipeline.validate fills it in"
        assert settings.train_bytes is not None, "the recipe was checked"
        with context.console.status("  learning a vocabulary"):
            texts = sample_texts(data.sources, settings.train_bytes, context.recipe.seed, data.held_out_fraction)
            tokenizer = Tokenizer.train(texts, settings.vocab_size)
    tokenizer.save(context.folder)
    template = Path(settings.path) / "chat_template.jinja" if settings.path is not None else None
    text = template.read_text("utf-8") if template is not None and template.exists() else template_source("glm-5")
    (context.folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return {"vocabulary": tokenizer.vocab_size}


def build_data(context: StageContext) -> Summary:
    """Read, clean, split and tokenise the recipe's sources."""
    data = context.recipe.data
    shutil.rmtree(context.folder, ignore_errors=True)  # only an interrupted attempt can be there
    columns = (TextColumn("  {task.description}"), TextColumn("{task.completed:,} bytes"), TimeElapsedColumn())
    with Progress(*columns, console=context.console, transient=True) as bar:
        task = bar.add_task("reading")
        manifest = build_corpus(
            data.sources,
            Tokenizer.load(context.run / "tokenizer"),
            context.folder,
            held_out_fraction=data.held_out_fraction,
            max_bytes=data.max_bytes,
            seed=context.recipe.seed,
            progress=lambda source, size: bar.update(task, description=source, completed=size),
        )
    return {
        "training tokens": manifest.tokens,
        "training documents": sum(source.documents for source in manifest.sources),
        "held-out documents": sum(source.held_out_documents for source in manifest.sources),
        "bytes per token": round(manifest.bytes_per_token, 3),
    }
