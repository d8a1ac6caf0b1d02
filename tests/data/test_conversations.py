import json

import numpy as np
import pytest

from transnormer_jax.data import (
    RELEASED_TEMPLATE,
    ByteTokenizer,
    ChatTemplate,
    ConversationRows,
    DataConfig,
    load_conversations,
    load_split,
    read_numbers,
)
from transnormer_jax.data.conversation_rows import best_fit
from transnormer_jax.data.conversations import ConversationTokens, read_conversation, spoken
from transnormer_jax.errors import UserError

BYTES = ByteTokenizer()
TEMPLATE = ChatTemplate(RELEASED_TEMPLATE, BYTES)
ONE_TURN = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]
PARTS = {"role": "User", "content": ["a", {"type": "text", "text": "\nb"}], "name": None}
SHORT_SYSTEM = [{"role": "system", "content": "s"}, *ONE_TURN]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [*ONE_TURN, {"role": "user", "content": "unanswered"}]}, ONE_TURN),
        (
            {
                "messages": [
                    {"Role": "x", "role": "User", "content": ["a", {"type": "text", "text": "\nb"}]},
                    ONE_TURN[1],
                ]
            },
            ONE_TURN,
        ),
        ({"conversations": [{"from": "human", "value": "a\nb"}, {"from": "gpt", "value": "c"}]}, ONE_TURN),
        ({"conversations": [{"from": "user", "value": "a\nb"}, {"from": "assistant", "value": "c"}]}, ONE_TURN),
        ({"conversation": ONE_TURN, "system": "s"}, SHORT_SYSTEM),
        ({"messages": SHORT_SYSTEM, "system": "other"}, SHORT_SYSTEM),
        ({"instruction": "a", "input": "b", "output": "c"}, ONE_TURN),
        ({"instruction": "a\nb", "input": "", "output": "c"}, ONE_TURN),
        ({"prompt": "a\nb", "response": "c", "id": 7}, ONE_TURN),
        ({"prompt": "a\nb", "completion": "c", "messages": None}, ONE_TURN),
        ({"prompt": SHORT_SYSTEM[:2], "completion": ONE_TURN[1:]}, SHORT_SYSTEM),
    ],
)
def test_records_of_several_customs(record, messages):
    assert read_conversation(record) == {"messages": messages, "tools": None}


def test_tools_and_calls_are_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "refusal": None}
    record = {"messages": [ONE_TURN[0], call], "tools": '[{"type": "function"}]'}
    expected = {"role": "assistant", "tool_calls": call["tool_calls"]}
    assert read_conversation(record) == {"messages": [ONE_TURN[0], expected], "tools": [{"type": "function"}]}


def test_what_is_said_is_what_a_tokenizer_is_trained_on():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    assert spoken(json.dumps({"messages": [*ONE_TURN, call], "tools": None})) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"text": "x"}, "it has no messages"),
        ({"messages": ONE_TURN[:1]}, "no message is the assistant's"),
        ({"messages": "hello"}, "no message is the assistant's"),
        ({"messages": [*ONE_TURN, "x"]}, "no list of objects"),
        ({"prompt": "a", "response": None}, "it has no messages"),
        ({"messages": [{"role": "user", "content": None}, ONE_TURN[1]]}, "message 1 has a content that is no text"),
        ({"messages": [ONE_TURN[0], {"role": "robot", "content": "x"}]}, "message 2 has the role 'robot': use system"),
        ({"conversations": [{}]}, "message 1 has the role None"),
        ({"messages": [ONE_TURN[0], {"role": "assistant", "content": None, "tool_calls": []}]}, "no text"),
        ({"messages": [ONE_TURN[0], ONE_TURN[1] | {"weight": 0}]}, "message 2 has a function_call or a weight"),
        ([], "no object"),
    ],
)
def test_other_records_are_refused(record, error):
    with pytest.raises(ValueError, match=error):
        read_conversation(record)


def conversation(*answers, system=()):
    messages = [{"role": "system", "content": text} for text in system]
    for answer in answers:
        messages += [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    return messages


def encode(messages, max_tokens, **options):
    [numbers] = ConversationTokens(TEMPLATE, BYTES, max_tokens, **options).encode_batch(
        [json.dumps({"messages": messages, "tools": None})]
    )
    return read_numbers(numbers)


def test_a_long_conversation_loses_its_first_turns_but_no_system_message():
    messages = conversation("first" * 9, "second", "third", system=["be brief"])
    for dropped in range(3):
        kept = [*messages[:1], *messages[1 + 2 * dropped :]]
        expected = TEMPLATE.encode(kept)
        tokens, learnt, shortened = encode(messages, len(expected.tokens))
        assert tokens.tolist() == expected.tokens
        assert learnt.tolist() == [*map(int, expected.supervised)]
        assert set(shortened) == {int(dropped > 0)}


def test_a_long_last_turn_loses_its_end_and_what_teaches_nothing_is_left_out():
    messages = conversation("an answer", "another one")
    whole = TEMPLATE.encode(messages[2:])
    prompt = TEMPLATE.encode(messages[2:3], reply=True).tokens
    tokens, learnt, shortened = encode(messages, len(prompt) + 4)
    assert tokens.tolist() == whole.tokens[: len(prompt) + 4]
    assert learnt.tolist() == [0] * len(prompt) + [1] * 4
    assert set(shortened) == {1}
    assert not len(encode(messages, len(prompt))[0])


def test_a_conversation_that_the_template_refuses():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", BYTES)
    texts = [json.dumps({"messages": ONE_TURN, "tools": None})]
    with pytest.raises(UserError, match=r"roles must alternate.*The messages are .*\"a\\nb\""):
        ConversationTokens(template, BYTES, 64).encode_batch(texts)
    [numbers] = ConversationTokens(template, BYTES, 64, skip=True).encode_batch(texts)
    assert not len(numbers)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Conversations of one to three turns, and their rows of 128 tokens."""
    directory = tmp_path_factory.mktemp("talk")
    talks = [conversation("c", *(f"{i} it is" * (i % 5 + 1) for _ in range(i % 3))) for i in range(80)]
    (directory / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = DataConfig(
        "plain_text",
        files=str(directory / "talk.jsonl"),
        documents="conversation",
        held_out=0.0,
        data_dir=str(directory / "prepared"),
    )
    return talks, load_conversations(config, BYTES, "train", 128)


def rows_of(conversations, epoch=0):
    rows = ConversationRows(conversations, 128, bos_id=BYTES.bos_id, pad_id=BYTES.pad_id, seed=3)
    first = epoch * rows.rows_per_epoch
    return [rows[row] for row in range(first, first + rows.rows_per_epoch)]


def test_every_epoch_has_every_conversation_once_and_whole(packed):
    talks, conversations = packed
    expected = []
    for talk in talks:
        numbers = TEMPLATE.encode(talk)
        if len(numbers.tokens) > 128:
            tokens, learnt, _ = encode(talk, 128)
            numbers = (tokens.tolist(), learnt.astype(bool).tolist())
        tokens, learnt = numbers
        expected.append(([BYTES.bos_id, *tokens[:-1]], tokens, [*map(int, learnt)]))
    orders = []
    for epoch in range(2):
        found = []
        for row in rows_of(conversations, epoch):
            assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}
            assert not row["mask"][row["segment_ids"] == 0].any()
            for segment in range(1, row["segment_ids"].max() + 1):
                own = row["segment_ids"] == segment
                found.append(tuple(row[name][own].tolist() for name in ("inputs", "targets", "mask")))
        assert sorted(found) == sorted(expected)
        orders.append(found)
    assert orders[0] != orders[1]


def test_rows_are_a_function_of_seed_and_index(packed):
    _, conversations = packed
    for one, other in zip(rows_of(conversations, 1), rows_of(conversations, 1), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_rows_of_nothing_are_refused(packed):
    _, conversations = packed
    empty = conversations.select(np.flatnonzero(conversations.lengths == 0))
    with pytest.raises(UserError, match="0 conversations with an answer that fits into a row of 128 tokens"):
        ConversationRows(empty, 128, bos_id=1, pad_id=0, seed=0)


def test_bins_hold_what_fits_and_few_are_needed():
    lengths = -np.sort(-np.random.default_rng(0).integers(1, 101, 2000))
    bins = best_fit(lengths, 100)
    assert np.bincount(bins, lengths).max() <= 100
    assert set(bins) == set(range(bins.max() + 1))
    # Best fit decreasing needs at most 11/9 of the fewest bins and 4 more (Johnson, 1973).
    assert bins.max() + 1 <= 11 / 9 * np.ceil(lengths.sum() / 100) + 4
    assert best_fit(np.array([6, 5, 4, 3, 2]), 10).tolist() == [0, 1, 0, 1, 1]


def test_what_the_released_template_cannot_say_is_refused():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    for messages in ([ONE_TURN[0], call], [*ONE_TURN, {"role": "tool", "content": "R"}, ONE_TURN[1]]):
        with pytest.raises(UserError, match="no form for calls of tools"):
            TEMPLATE.encode(messages)


def test_conversations_are_for_fine_tuning_alone(tmp_path):
    with pytest.raises(UserError, match=r"is for config\.task\.name='supervised_lm'"):
        load_split(DataConfig("plain_text", str(tmp_path), "conversation"), BYTES, "train")
