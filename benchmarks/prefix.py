"""How much of an agent's prompts the prefix cache has already: thoughts preserved, and cleared as by default.

    python benchmarks/prefix.py

One conversation of ten tool rounds; the user speaks again after the fifth. Thoughts and calls are sampled (a random
network under a tool grammar, one token a byte), parsed, rendered again and sent back, as an agent does. Preserved
thinking only ever extends the prompt. With `clear_thinking` the thoughts before a new user message disappear from the
middle of it, and everything behind the first of them has to be computed again; within a turn nothing is lost.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from glm5.engine.core import EngineCore
from glm5.engine.records import Completion, EngineSettings, Grammar, SamplingParams
from glm5.model.presets import preset
from glm5.model.transformer import Transformer
from glm5.text.events import collect
from glm5.text.markers import Marker
from glm5.text.messages import Message, Tool
from glm5.text.parser import OutputParser
from glm5.text.streams import TokenStream
from glm5.text.template import render_ids
from glm5.text.tokenizer import Tokenizer, special_tokens

ROUNDS, SPEAKS_AGAIN = 10, 5
PAGE = 16
LOOK = Tool(
    "look", "Shows a file.", {"type": "object", "properties": {"file": {"enum": ["a", "b"]}}, "required": ["file"]}
)
SYSTEM = "You repair programs. Look before you change, and say what you found. " * 20
RESULT = "def area(width, height):\n    return width + height\n"


@dataclass(frozen=True, slots=True)
class Round:
    """One request: its prompt's tokens, how many were cached, and the tokens made."""

    prompt: int
    cached: int
    made: int

    @property
    def share(self) -> float:
        """Of the prompt that was cached."""
        return self.cached / self.prompt


def byte_tokenizer() -> Tokenizer:
    """One token a byte: whatever is sampled, its text has one encoding only."""
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


def small_core(tokenizer: Tokenizer) -> EngineCore:
    """The real engine with a random network."""
    config = preset(
        "nano", vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, eos_token_id=tokenizer.stop_ids,
        intermediate_size=64, moe_intermediate_size=16, max_position_embeddings=8192,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(0)
    return EngineCore(model.eval(), EngineSettings(page_size=PAGE, cache_bytes=64 * 2**20), tokenizer)


def conversation(core: EngineCore, tokenizer: Tokenizer, clear_thinking: bool) -> list[Round]:
    """Ten tool rounds, each the continuation of the one before."""
    # Letters only in thoughts: other bytes may be no UTF-8, blanks at the ends are not rendered again, and a random
    # network puts special tokens anywhere. Where the grammar leaves only such tokens, they come all the same.
    wanted = {*tokenizer.encode("abcdefghijklmnopqrstuvwxyz"), tokenizer.special_ids[Marker.END_THINK]}
    never = {token: -100.0 for token in range(tokenizer.vocab_size) if token not in wanted}
    grammar = Grammar("tool_calls", {"tools": [{"name": LOOK.name, "parameters": LOOK.parameters}]}, True)
    messages = [Message("system", SYSTEM), Message("user", "The area is wrong.")]
    rounds = []
    for number in range(ROUNDS):
        if number == SPEAKS_AGAIN:
            messages.append(Message("user", "Now look at the other file."))
        prompt = render_ids(messages, tokenizer, [LOOK], clear_thinking=clear_thinking)
        params = SamplingParams(max_tokens=200, seed=number, grammar=grammar, thinking_budget=40, logit_bias=never)
        core.add(core.prepare(f"{clear_thinking}-{number}", prompt, params))
        turn = Completion(0)
        while core.has_work:
            for delta in core.step():
                turn.add(delta)
        stream = TokenStream(OutputParser([LOOK]), tokenizer)
        messages += [collect(stream.feed(turn.ids) + stream.finish()), Message("tool", RESULT)]
        rounds.append(Round(len(prompt), turn.cached_tokens, len(turn.ids)))
    return rounds


def main() -> None:
    """Print the table."""
    tokenizer = byte_tokenizer()
    kept, cleared = (conversation(small_core(tokenizer), tokenizer, clear) for clear in (False, True))
    table = Table("round", "prompt", "cached", "share", "prompt", "cached", "share", title="preserved | cleared")
    for number, pair in enumerate(zip(kept, cleared), start=1):
        cells = [cell for each in pair for cell in (str(each.prompt), str(each.cached), f"{each.share:.1%}")]
        table.add_row(str(number), *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
