"""Files of conversations → exact training sequences → packed rows: each turn learned once, as an engine samples it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.data.conversations import Conversation, Line, Rollout, read_lines, read_record
from glm5.data.packing import pack
from glm5.data.sft_corpus import build_sft_data
from glm5.data.sft_loader import PADDING, SftLoader
from glm5.data.turns import TrainingSequence, sequences
from glm5.errors import GLM5Error, UsageError
from glm5.recipe import SftSection
from glm5.text.events import collect
from glm5.text.messages import Message, Tool
from glm5.text.parser import OutputParser
from glm5.text.streams import TokenStream
from glm5.text.template import render_ids
from glm5.text.tokenizer import Tokenizer, special_tokens

TOOL = Tool("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], vocab_size=256 + len(special_tokens()))


def record(values: dict[str, Any], **options: Any) -> Conversation | Rollout:
    return read_record(Line("f.jsonl:1", values), **options)


def chat(*messages: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"messages": list(messages), **values}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, thought: str | None = None, **values: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "reasoning_content": thought, **values}


def spans(sequence: TrainingSequence) -> list[tuple[list[int], list[int]]]:
    """Each learned stretch with all that stands before it."""
    found, begin = [], None
    for place, learned in enumerate([*sequence.loss_mask, False]):
        if learned and begin is None:
            begin = place
        elif not learned and begin is not None:
            found.append((sequence.ids[:begin], sequence.ids[begin:place]))
            begin = None
    return found


def shown(values: dict[str, Any], **options: Any) -> list[list[str]]:
    """For each sequence the text of every learned stretch."""
    return [
        [tokenizer().decode(ids) for _, ids in spans(sequence)]
        for sequence in sequences(record(values, **options), tokenizer())
    ]


# -- the rule --------------------------------------------------------------------------------------------------------

WORDS = st.text("ab é<|>/\n", max_size=6)
OWN_WORDS = st.text("ab é.", max_size=5).map(str.strip)
CALLS = st.lists(st.builds(lambda text: {"name": "look", "arguments": {"at": text}}, OWN_WORDS), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(WORDS)))
        for _ in range(draw(st.integers(0, 3))):
            message = answer(draw(OWN_WORDS), draw(st.none() | OWN_WORDS))
            message |= draw(st.sampled_from([{}, {"train": False}, {"thinking": False}, {"thinking": True}]))
            calls = [{"id": str(i), "function": call} for i, call in enumerate(draw(CALLS))]
            messages.append(message | {"tool_calls": calls})
            results = [{"role": "tool", "tool_call_id": call["id"], "content": draw(WORDS)} for call in calls]
            messages += draw(st.permutations(results))
    messages += [answer(draw(OWN_WORDS))]
    return chat(
        *messages, thinking=draw(st.sampled_from(["interleaved", "preserved", "off"])), tools=[TOOL.to_openai()]
    )


@settings(deadline=None, max_examples=120)
@given(conversations())
def test_what_is_learned_is_what_an_engine_would_sample(values: dict[str, Any]) -> None:
    """Prompts are those the engine is given, outputs are read back by the server's parser as the messages."""
    conversation = record(values)
    assert isinstance(conversation, Conversation)
    learned = [span for sequence in sequences(conversation, tokenizer()) for span in spans(sequence)]
    wanted = [i for i, message in enumerate(values["messages"]) if message["role"] == "assistant"]
    wanted = [i for i in wanted if values["messages"][i].get("train") is not False]
    assert len(learned) == len(wanted)
    for i in wanted:
        raw = values["messages"][i]
        message = conversation.messages[i]
        thinks = raw.get("thinking")
        if thinks is None:
            thinks = values["thinking"] != "off" and raw["reasoning_content"] is not None
        prompt = render_ids(
            conversation.messages[:i],
            tokenizer(),
            [TOOL],
            enable_thinking=thinks,
            clear_thinking=values["thinking"] != "preserved",
        )
        [output] = [ids for before, ids in learned if before == prompt]
        stop = "<|observation|>" if message.tool_calls else "<|user|>"
        assert output[-1] == tokenizer().special_ids[stop]
        stream = TokenStream(OutputParser(thinking=thinks, tools=[TOOL]), tokenizer())
        events = stream.feed(output[:-1])
        read = collect(events + stream.finish())
        assert read.content.strip() == raw["content"]
        assert read.reasoning_content == ((raw["reasoning_content"] or "") if thinks else None)
        assert [(c.name, c.arguments) for c in read.tool_calls] == [(c.name, c.arguments) for c in message.tool_calls]


def test_preserved_thinking_makes_one_sequence_and_interleaved_one_for_each_thought_that_is_dropped() -> None:
    turns = [user("q"), answer("a", "r"), user("s"), answer("b", "t"), user("u"), answer("c")]
    assert shown(chat(*turns, thinking="preserved")) == [["r</think>a<|user|>", "t</think>b<|user|>", "c<|user|>"]]
    assert shown(chat(*turns)) == [["r</think>a<|user|>"], ["t</think>b<|user|>"], ["c<|user|>"]]
    assert shown(chat(*turns), thinking="preserved") == shown(chat(*turns, thinking="preserved"))
    assert shown(chat(*turns, thinking="off")) == [["a<|user|>", "b<|user|>", "c<|user|>"]]


def test_calls_end_with_observation_and_results_are_never_learned() -> None:
    call = {"id": "1", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    turns = [user("q"), answer("", "r", tool_calls=[call]), {"role": "tool", "content": "found"}, answer("b", "t")]
    calling = "r</think><tool_call>look<arg_key>at</arg_key><arg_value>x</arg_value></tool_call><|observation|>"
    assert shown(chat(*turns)) == [[calling, "t</think>b<|user|>"]]


def test_an_error_stays_in_the_context_unlearned() -> None:
    turns = [user("q"), answer("wrong", train=False), user("no"), answer("right")]
    [sequence] = sequences(record(chat(*turns)), tokenizer())
    assert "wrong" in tokenizer().decode(sequence.ids)
    assert shown(chat(*turns)) == [["right<|user|>"]]


def test_special_tokens_in_what_people_wrote_are_text() -> None:
    [sequence] = sequences(record(chat(user("<|assistant|></think>x<|user|>"), answer("a"))), tokenizer())
    assert (
        sequence.ids.count(tokenizer().special_ids["<|user|>"]) == 2
    )  # the question's, and the one that ends the turn


def test_rollouts_keep_their_ids_and_branch_where_prompts_do() -> None:
    turns = [
        {"prompt_ids": [1, 2], "ids": [3, 4], "finish_reason": "tool_calls"},
        {"prompt_ids": [1, 2, 3, 4, 5], "ids": [6], "finish_reason": "stop"},
        {"prompt_ids": [1, 9], "ids": [7, 8], "finish_reason": "length"},  # cut off: not learned
        {"prompt_ids": [1, 9], "ids": [7], "finish_reason": "stop"},
    ]
    found = sequences(record({"turns": turns, "reward": 1}), tokenizer())
    assert [(s.ids, s.loss_mask) for s in found] == [
        ([1, 2, 3, 4, 5, 6], [False, False, True, True, False, True]),
        ([1, 9, 7], [False, False, True]),
    ]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (chat(user("q")), "no message is the assistant's"),
        (chat(user("q"), answer("a", train=False)), "every assistant message has"),
        (chat({"role": "robot", "content": "x"}), "unknown role 'robot'"),
        (chat(user("q") | {"train": True}, answer("a")), r"messages\[0\]: train is for assistant messages only"),
        (chat(user("q"), answer("a", thinking="no")), r"messages\[1\]: thinking must be true or false"),
        (chat(user("q"), answer("a"), thinking="deep"), "thinking must be one of interleaved, preserved, off"),
        ({"text": "x"}, "expected 'messages' .* or 'turns' .*, found 'text'"),
        ({"messages": "["}, "the JSON of one"),
        ({"turns": [{"prompt_ids": [1], "ids": ["a"]}]}, r"turns\[0\]: ids must be a list of token ids"),
        ({"turns": [], "reward": "good"}, "reward must be a number"),
    ],
)
def test_a_malformed_record_is_told_with_its_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^f.jsonl:1: .*{message}"):
        record(values)


def test_what_no_model_could_have_written_is_refused() -> None:
    with pytest.raises(UsageError, match=r"messages\[1\]: no model could have answered so"):
        sequences(record(chat(user("q"), answer("a</think>b</think>c", thinking=False))), tokenizer())
    turn = {"prompt_ids": [1], "ids": [99999], "finish_reason": "stop"}
    with pytest.raises(UsageError, match="token id 99999 is not in"):
        sequences(record({"turns": [turn], "reward": 1}), tokenizer())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    with pytest.raises(UsageError, match="there is no file"):
        list(read_lines(path))
    path.write_text("\n \n")
    with pytest.raises(UsageError, match=r"f\.jsonl is empty"):
        list(read_lines(path))
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UsageError, match=r"f\.jsonl:2: this is not JSON"):
        list(read_lines(path))
    path.write_text("[1]\n")
    with pytest.raises(UsageError, match=r"f\.jsonl:1: expected one JSON object a line, not list"):
        list(read_lines(path))


# -- packing ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), max_size=60))
def test_packing_loses_nothing_and_wastes_little(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    filled = [sum(lengths[document] for document in row) for row in rows]
    assert all(size <= 20 for size in filled)
    assert len(rows) < 2 or sum(sorted(filled)[:2]) > 20  # no two rows fit into one


def test_packing_takes_the_fullest_row_with_room() -> None:
    assert pack([5, 3, 7, 2, 2], 10) == [[2, 1], [0, 3, 4]]
    with pytest.raises(ValueError, match="document 1 takes 11"):
        pack([1, 11], 10)


# -- the data folder and its rows ------------------------------------------------------------------------------------


def write(path: Path, count: int, **values: Any) -> Path:
    lines = [chat(user(f"question {path.stem} {i}"), answer("x" * (i % 17), "so"), **values) for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def section(*paths: Path, **values: Any) -> SftSection:
    weights = values.pop("weights", [1.0] * len(paths))
    data = [{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    return SftSection.model_validate({"context_length": 128, "data": data, **values})


def build(folder: Path, settings: SftSection, seed: int = 0) -> Any:
    return build_sft_data(settings, tokenizer(), folder / "data", seed, lambda source, count: None)


def loader(folder: Path, settings: SftSection, seed: int = 0) -> SftLoader:
    weights = {source.title: source.weight for source in settings.data}
    return SftLoader(folder / "data", weights, tokenizer().pad_id, seed)


def test_an_epoch_has_every_sequence_once_and_nothing_held_out(tmp_path: Path) -> None:
    settings = section(write(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", 30), held_out_fraction=0.1)
    manifest = build(tmp_path, settings)
    assert [(source.held_out_records, source.sequences) for source in manifest.sources] == [(5, 45), (3, 27)]
    rows = loader(tmp_path, settings)
    assert rows.rows_until(1) == sum(rows.rows.values())
    batch = rows.next_batch(rows.rows_until(1))
    learned = 0
    texts = []
    for row in range(len(batch.input_ids)):
        documents = batch.document_ids[row]
        for number in range(int(documents.max()) + 1):
            inside = documents == number
            inputs, targets = batch.input_ids[row][inside], batch.targets[row][inside]
            assert torch.equal(inputs[1:], targets[:-1])
            assert batch.positions[row][inside].tolist() == list(range(len(inputs)))
            texts.append(tokenizer().decode(inputs.tolist()))
        assert not batch.loss_mask[row][documents == PADDING].any()
        learned += int(batch.loss_mask[row].sum())
    assert len(set(texts)) == len(texts) == 72
    assert learned == sum(source.learned_tokens for source in manifest.sources)
    held_out = {i for i in range(50) if not any(f"question a {i}<" in text for text in texts)}
    assert len(held_out) == 5


def test_weights_are_readings_in_an_epoch(tmp_path: Path) -> None:
    settings = section(write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 40), weights=[2.0, 0.5])
    build(tmp_path, settings)
    rows = loader(tmp_path, settings)
    batch = rows.next_batch(rows.rows_until(2))
    assert batch.sources.count("a") == 4 * rows.rows["a"]
    assert batch.sources.count("b") == rows.rows["b"]
    seen = {tuple(ids.tolist()) for ids, name in zip(batch.input_ids, batch.sources, strict=True) if name == "b"}
    assert len(seen) == rows.rows["b"]  # each row of the half-weighted file once in two epochs


@settings(deadline=None, max_examples=20)
@given(before=st.lists(st.integers(1, 9), max_size=5), seed=st.integers(0, 3))
def test_resuming_gives_the_same_bits_however_rows_are_batched(
    before: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    chosen = section(write(folder / "a.jsonl", 25))
    build(folder, chosen, seed)
    undisturbed = loader(folder, chosen, seed).next_batch(sum(before) + 6)
    first = loader(folder, chosen, seed)
    for rows in before:
        first.next_batch(rows)
    second = loader(folder, chosen, seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed = second.next_batch(6)
    for whole, part in zip(undisturbed.fields, resumed.fields, strict=True):
        assert torch.equal(whole[sum(before) :], part)
    with pytest.raises(UsageError, match="seed was"):
        loader(folder, chosen, seed + 1).load_state_dict(first.state_dict())


def test_too_long_is_counted_and_dropped_or_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 20)
    with path.open("a") as file:
        file.write(json.dumps(chat(user("q"), answer("y" * 500))) + "\n")
        file.write(json.dumps(chat(user("q" * 500), answer("y"))) + "\n")
    [dropped] = build(tmp_path, section(path, held_out_fraction=0)).sources
    assert (dropped.sequences, dropped.dropped, dropped.truncated) == (20, {"too long": 2}, 0)
    [cut] = build(tmp_path, section(path, held_out_fraction=0, too_long="truncate")).sources
    assert (cut.sequences, cut.truncated) == (21, 1)
    assert cut.dropped == {"with nothing to learn within context_length": 1}
    with pytest.raises(GLM5Error, match=r"a\.jsonl: 22 records.* 22 too long: nothing is left to train on"):
        build(tmp_path, section(path, held_out_fraction=0, context_length=8))


def test_rollouts_are_chosen_by_reward(tmp_path: Path) -> None:
    turn = {"prompt_ids": [1, 2], "ids": [3], "finish_reason": "stop"}
    lines = [{"task_id": str(i), "turns": [turn], "reward": i / 10, "failure": ""} for i in range(10)]
    lines += [{"task_id": "x", "turns": [turn], "reward": 1.0, "failure": "deadline"}]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def reading(**values: Any) -> SftSection:
        return section(held_out_fraction=0, data=[{"path": path, **values}])

    [counts] = build(tmp_path, reading(min_reward=0.7)).sources
    assert (counts.sequences, counts.dropped) == (3, {"below min_reward": 7, "failed": 1})
    with pytest.raises(UsageError, match=r"rollouts\.jsonl:1 is a recorded rollout: say which .* min_reward"):
        build(tmp_path, reading())
    chats = write(tmp_path / "a.jsonl", 3)
    with pytest.raises(UsageError, match=r"holds conversations only, which min_reward = 0\.5 cannot sort"):
        build(tmp_path, section(held_out_fraction=0, data=[{"path": chats, "min_reward": 0.5}]))


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(GLM5Error, match="pip install pyarrow"):
        list(read_lines(path))


def test_a_thought_inside_the_content_is_a_thought() -> None:
    inside = record(chat(user("q"), answer("<think>r</think>a")))
    assert isinstance(inside, Conversation)
    assert inside.messages[1] == Message("assistant", "a", "r")
