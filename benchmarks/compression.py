"""Held-out bits per byte of a trained run beside what anybody has: `xz -9e` and a byte trigram with backoff.

    python benchmarks/compression.py runs/nano

Every held-out document of every source is scored, by all contestants alike. The model reads each document alone, in
windows of its training context; xz is shown twice, once with each document alone too, once with all documents of a
source in one stream, where it may copy from earlier ones.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from glm5.data.manifest import held_out_documents
from glm5.model.checkpoint import load_checkpoint
from glm5.recipe import load_recipe
from glm5.text.tokenizer import Tokenizer
from glm5.train.baselines import TRAINING_SAMPLE_BYTES, baseline_bits_per_byte, training_bytes
from glm5.train.evaluate import bits_per_byte, lay_out, take_bytes
from glm5.train.parallel import World

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Score, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--bytes", type=int, default=10**9, help="of each source at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_recipe(arguments.run / "recipe.toml").pretrain
    tokenizer = Tokenizer.load(arguments.run / "tokenizer")
    model = load_checkpoint(arguments.run / "pretrain" / "model", torch.float32)
    documents = take_bytes(held_out_documents(arguments.run / "data"), arguments.bytes)
    held_out = lay_out(documents, tokenizer, settings.context_length)
    began = time.perf_counter()
    bits, _ = bits_per_byte(
        model, held_out, World(), dtype=getattr(torch, settings.dtype), sparse=False, loss_chunk_tokens=8192
    )
    seconds = time.perf_counter() - began
    results = {}
    table = Table("held-out source", "bytes", "glm5", "byte trigram", "xz -9e alone", "xz -9e one stream")
    for source in held_out.names:
        chosen = [document for document in documents if document.source == source]
        training = training_bytes(arguments.run / "data", tokenizer, TRAINING_SAMPLE_BYTES)
        baselines = baseline_bits_per_byte(training, chosen)
        results[source] = {"bytes": held_out.size[source], "glm5": bits[source], **baselines}
        trigram, stream, alone = baselines.values()
        figures = [f"{value:.3f}" for value in (bits[source], trigram, alone, stream)]
        table.add_row(source, f"{held_out.size[source]:,}", *figures)
    Console(width=110).print(table)
    print(f"bits per byte; the model needed {seconds:.0f} s for all of it")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compression.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
