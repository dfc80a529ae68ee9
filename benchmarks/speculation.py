"""What drafts of the prediction layer save: decoding one sequence with and without them, turn by turn.

    python benchmarks/speculation.py CHECKPOINT TEXTS [--drafts 4] [--prompts 8] [--new 200] [--profile]

TEXTS is a file of held-out text, plain or JSON lines with a `text`; its beginnings are the prompts. Greedy, one thread;
tokens are equal by construction, and checked. `acceptance length` is the mean number of tokens a verification yields.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from glm5.engine.core import EngineCore
from glm5.engine.records import EngineSettings, SamplingParams
from glm5.errors import UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.text.tokenizer import Tokenizer

PROMPT = 64  # tokens


def read_prompts(path: Path, tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """The first tokens of `count` texts, evenly spread over the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else ["\n".join(lines)]
    encoded = [ids for text in texts if len(ids := tokenizer.encode(text)) >= PROMPT]
    if len(texts) == 1:
        encoded = [encoded[0][at : at + PROMPT] for at in range(0, len(encoded[0]) - PROMPT, PROMPT)] if encoded else []
    if len(encoded) < count:
        raise UsageError(f"{path} has {len(encoded)} texts of {PROMPT} tokens; {count} prompts were asked for")
    return [encoded[i * len(encoded) // count][:PROMPT] for i in range(count)]


def decode(core: EngineCore, name: str, ids: list[int], count: int) -> tuple[list[int], float]:
    """Greedy tokens, and CPU seconds from the first to the last: what neighbours on the machine do does not count."""
    core.add(core.prepare(name, ids, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)))
    made = [token.token_id for delta in core.step() for token in delta.tokens]
    began = time.process_time()
    while core.has_work:
        made += [token.token_id for delta in core.step() for token in delta.tokens]
    return made, time.process_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--drafts", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--profile", action="store_true", help="where the time of drafting goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(arguments.checkpoint)
    model = load_checkpoint(arguments.checkpoint, torch.float32)
    cores = {
        "none": EngineCore(model, EngineSettings(prefix_cache=False), tokenizer),
        f"{arguments.drafts}": EngineCore(
            model, EngineSettings(prefix_cache=False, draft_tokens=arguments.drafts), tokenizer
        ),
        "adaptive": EngineCore(model, EngineSettings(prefix_cache=False, draft_tokens="adaptive"), tokenizer),
    }
    prompts = read_prompts(arguments.texts, tokenizer, arguments.prompts)
    speeds: dict[str, list[float]] = {name: [] for name in cores}
    profile = cProfile.Profile()
    for number, ids in enumerate(prompts):
        outs = {}
        for name, core in cores.items():
            if arguments.profile and name == f"{arguments.drafts}":
                profile.enable()
            outs[name], seconds = decode(core, str(number), ids, arguments.new)
            profile.disable()
            speeds[name].append((arguments.new - 1) / seconds)
        assert all(made == outs["none"] for made in outs.values()), "drafts changed the tokens"
    table = Table("drafts", "tokens/s", "times", "acceptance length", "accepted by place")
    for name, core in cores.items():
        stats = core.stats()
        ratio = statistics.median(mine / plain for mine, plain in zip(speeds[name], speeds["none"]))
        shares = " ".join(f"{each / stats.drafts:.2f}" for each in stats.accepted_per_position if stats.drafts)
        speed = f"{statistics.median(speeds[name]):.0f}"
        table.add_row(name, speed, f"{ratio:.2f}", f"{stats.acceptance_length:.2f}", shares or "-")
    Console(width=100).print(table)
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
