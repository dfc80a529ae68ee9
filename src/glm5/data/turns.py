"""Conversations → training sequences: token ids, and for each whether the assistant produced it and learns it.

What is learned is exactly what an engine would have had to sample. A turn's prompt is rendered as the engine's is
(text/template.py, with the generation prompt that opens or closes the thought); what the conversation's own rendering
adds to it, and the stop token that ends the turn, is the turn's output:

    [gMASK]<sop><|user|>hi<|assistant|><think> hm</think>Hello.<|user|> bye<|assistant|><think> so</think>Bye.<|user|>
    └──────────────── context ───────────────┘ └───── learned ───────┘ └────── context ───────┘ └───── learned ──────┘

A turn whose prompt begins with a whole earlier sequence extends it. Where it does not (with interleaved thinking a new
user message takes the earlier thoughts out of the rendering) it begins a sequence of its own, in which earlier turns
are context. So each turn is learned exactly once, in the rendering in which it was produced.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from glm5.data.conversations import Conversation, RecordedTurn, Rollout
from glm5.errors import GLM5Error, UsageError
from glm5.text.markers import STOP_TOKENS, Marker
from glm5.text.messages import Message, Tool
from glm5.text.template import Segment, render_segments
from glm5.text.tokenizer import Tokenizer

_NEEDED = (Marker.THINK, Marker.END_THINK, *STOP_TOKENS, "<|assistant|>")


@dataclass(slots=True)
class TrainingSequence:
    """One document to train on; `loss_mask[i]` says whether `ids[i]` is learned."""

    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)

    def extend(self, turn: RecordedTurn) -> None:
        """Add a turn whose prompt begins with this sequence."""
        context = turn.prompt_ids[len(self.ids) :]
        self.ids += context + turn.ids
        self.loss_mask += [False] * len(context) + [True] * len(turn.ids)


def sequences(record: Conversation | Rollout, tokenizer: Tokenizer) -> list[TrainingSequence]:
    """The sequences a record is learned from.

    Raises:
        UsageError: the tokenizer lacks the chat template's special tokens, a message cannot be rendered so that its
            turn could have been sampled, or an id is not in the vocabulary.
    """
    if isinstance(record, Rollout):
        highest = max((max(turn.prompt_ids + turn.ids, default=0) for turn in record.turns), default=0)
        if highest >= tokenizer.vocab_size:
            raise UsageError(f"token id {highest} is not in the tokenizer's vocabulary of {tokenizer.vocab_size}")
        return _chained(record.turns)
    if missing := [name for name in _NEEDED if name not in tokenizer.special_ids]:
        raise UsageError(f"the tokenizer lacks special tokens of the chat template: {', '.join(missing)}")
    return _chained(_sampled_turns(record, tokenizer))


def _chained(turns: Iterable[RecordedTurn]) -> list[TrainingSequence]:
    """Extend the longest sequence that a prompt begins with, or begin another."""
    chained: list[TrainingSequence] = []
    for turn in turns:
        if not turn.learned:  # it is context of the turns after it, which have it in their prompts
            continue
        begun = [s for s in chained if turn.prompt_ids[: len(s.ids)] == s.ids]
        if not begun:
            begun.append(TrainingSequence())
            chained += begun
        max(begun, key=lambda sequence: len(sequence.ids)).extend(turn)
    return chained


def _sampled_turns(conversation: Conversation, tokenizer: Tokenizer) -> Iterator[RecordedTurn]:
    """Every learned turn with its prompt and what an engine would have sampled after it."""
    rendering = _Rendering(conversation, tokenizer)
    for number, message in enumerate(conversation.messages):
        rendering.add(number)
        if not conversation.learned[number]:
            continue
        thinks = message.reasoning_content is not None
        prompt = rendering.before + rendering.beginning(thinks)
        if rendering.ids[: len(prompt)] != prompt:
            raise UsageError(
                f"messages[{number}]: no model could have answered so: its thought does not begin where its prompt"
                f" ends. Is there a second {Marker.END_THINK} in the content?"
            )
        stop = tokenizer.special_ids["<|observation|>" if message.tool_calls else "<|user|>"]
        yield RecordedTurn(prompt, [*rendering.ids[len(prompt) :], stop], learned=True)
    rendering.check(len(conversation.messages))


class _Rendering:
    """A conversation's ids as it grows by a message at a time.

    What a message adds depends on little else: whether its thought is shown, and for a tool's result the messages it
    stands in a row with. So each is rendered once or twice in a conversation of its own, and not again in every prompt
    it is part of: an agent's two hundred turns would be rendered twenty thousand times. `check` compares with the
    rendering of the whole.

    Attributes:
        ids: of the messages so far.
        before: the same without the last of them.
    """

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer) -> None:
        self._conversation, self._encode = conversation, _Encoder(tokenizer)
        first = conversation.messages[:1]
        self._opening = self._encode(_segments([Message("user")]))[:-1]
        with_tools = self._encode(_segments(first, conversation.tools))
        self.ids = self.before = with_tools[: len(with_tools) - len(self._added(0, shown=True))]
        self._start = self.ids

    def add(self, number: int) -> None:
        """Grow by message `number`. A user's message hides the thoughts before it, unless they are preserved."""
        if self._conversation.messages[number].role == "user" and not self._conversation.keeps_thoughts:
            self.check(number)
            self.ids = [*self._start, *(i for n in range(number) for i in self._added(n, shown=False))]
        self.before, self.ids = self.ids, self.ids + self._added(number, shown=True)

    def beginning(self, thinks: bool) -> list[int]:
        """How the prompt of a turn that does or does not think goes on after `before`."""
        message = [Message("user")]
        asked = self._encode(_segments(message, add_generation_prompt=True, enable_thinking=thinks))
        return asked[len(self._opening) + 1 :]

    def check(self, count: int) -> None:
        """See that the first `count` messages, rendered together, are what they are one by one."""
        if not count:
            return
        conversation = self._conversation
        together = _segments(
            conversation.messages[:count], conversation.tools, clear_thinking=not conversation.keeps_thoughts
        )
        if self._encode(together) != self.ids:
            raise GLM5Error(f"the chat template renders the first {count} messages otherwise than one by one")

    def _added(self, number: int, *, shown: bool) -> list[int]:
        """What message `number` adds; `shown`, with its thought."""
        messages, start = self._conversation.messages, number
        while messages[start].role == "tool":
            start -= 1
        after = [] if shown else [Message("user")]  # one token, which hides the thought before it
        ids = self._encode(_segments([*messages[start : number + 1], *after], clear_thinking=not shown))
        earlier = [*messages[start:number], *after]
        known = self._encode(_segments(earlier, clear_thinking=not shown)) if earlier else self._opening
        return ids[len(known) - len(after) : len(ids) - len(after)]


def _segments(
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = False,
    enable_thinking: bool = True,
    clear_thinking: bool = False,
) -> list[Segment]:
    """Segments of GLM-5's template, by default of messages whose thoughts are all shown."""
    return render_segments(
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
        generation="glm-5",
    )


class _Encoder:
    """Encodes segments as `render_ids` does; a conversation's prompts share most of theirs, so each is encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[Segment, list[int]] = {}

    def __call__(self, segments: Iterable[Segment]) -> list[int]:
        ids: list[int] = []
        for segment in segments:
            if segment not in self._known:
                self._known[segment] = self._tokenizer.encode(segment.text, allow_special=segment.is_template)
            ids += self._known[segment]
        return ids
