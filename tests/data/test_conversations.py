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
)
from transnormer_jax.data.conversations import read_messages
from transnormer_jax.data.text_files import read_documents
from transnormer_jax.errors import UserError

BYTES = ByteTokenizer()
SPECIAL = {"bos_id": BYTES.bos_id, "eos_id": BYTES.eos_id, "pad_id": BYTES.pad_id}
ONE_TURN = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [*ONE_TURN, {"role": "user", "content": "unanswered"}]},
        {"conversations": [{"from": "human", "value": "a\nb"}, {"from": "gpt", "value": "c"}]},
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a\nb", "input": "", "output": "c"},
        {"prompt": "a\nb", "response": "c", "id": 7},
        {"prompt": "a\nb", "completion": "c"},
    ],
)
def test_records_of_several_customs(record):
    assert read_messages(record) == ONE_TURN


@pytest.mark.parametrize(
    "record",
    [{"text": "x"}, {"messages": ONE_TURN[:1]}, {"prompt": "a", "response": None}, {"conversations": [{}]}, []],
)
def test_other_records_are_the_users_error_with_their_number(tmp_path, record):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ({"messages": ONE_TURN}, record)))
    documents = read_documents(path, "conversation")
    assert json.loads(next(documents)) == ONE_TURN
    with pytest.raises(UserError, match=r"line 2: it is (no conversation|an array)"):
        next(documents)


def test_plain_text_holds_no_conversations(tmp_path):
    (tmp_path / "talk.txt").write_text("Human: hello")
    with pytest.raises(UserError, match=r"conversations are records: give \.jsonl or \.parquet"):
        list(read_documents(tmp_path / "talk.txt", "conversation"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Conversations of one and two turns, and their rows of 64 tokens."""
    directory = tmp_path_factory.mktemp("talk")
    talks = [
        [*ONE_TURN, {"role": "user", "content": f"and {i}?"}, {"role": "assistant", "content": f"{i} it is" * (i % 9)}]
        for i in range(1, 80)
    ]
    (directory / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = DataConfig(
        "plain_text",
        files=str(directory / "talk.jsonl"),
        documents="conversation",
        held_out=0.0,
        data_dir=str(directory / "prepared"),
    )
    template = ChatTemplate(RELEASED_TEMPLATE, BYTES)
    tokens, mask = load_conversations(config, BYTES, template, "train")
    return talks, tokens, mask, ConversationRows(tokens, mask, 64, **SPECIAL, seed=3)


def test_every_answer_and_its_end_are_predicted_once_and_nothing_else(packed):
    talks, tokens, mask, rows = packed
    np.testing.assert_array_equal(tokens.lengths, mask.lengths)
    predicted = []
    for row in range(rows.rows_per_epoch):
        arrays = rows[row]
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
        assert not arrays["mask"][arrays["segment_ids"] == 0].any()
        predicted += arrays["targets"][arrays["mask"] == 1].tolist()
    answers = [message["content"] for talk in talks for message in talk if message["role"] == "assistant"]
    expected = [token for answer in answers for token in (*BYTES.encode(answer), BYTES.eos_id)]
    assert sorted(predicted) == sorted(expected)


def test_the_mask_is_that_of_the_targets(packed):
    _, tokens, mask, rows = packed
    template = ChatTemplate(RELEASED_TEMPLATE, BYTES)
    whole = ConversationRows(tokens, mask, rows.rows_per_epoch * 64, **SPECIAL, seed=3)[0]
    begins = np.flatnonzero(whole["inputs"] == BYTES.bos_id)
    begin, end = begins[4], begins[5]
    own = slice(begin, end)
    text = BYTES.decode(whole["targets"][own].tolist())
    answer = BYTES.decode(whole["targets"][own][whole["mask"][own] == 1].tolist())
    assert text.startswith("Human:\na\nb\nAssistant:\nc")
    assert answer == "c" + text.rsplit("Assistant:\n", 1)[1]
    assert template.encode(ONE_TURN).tokens == whole["targets"][own][: len("Human:\na\nb\nAssistant:\nc")].tolist()
