import random

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from transnormer_jax.data import ByteTokenizer, load_tokenizer
from transnormer_jax.inference.text_stream import TextStream

BYTES = ByteTokenizer()


class Words:
    """Like SentencePiece: a word brings the space before it, which the first word of a decoded text loses."""

    eos_id = 0

    def decode(self, ids):
        return " ".join("abcdefgh"[index - 1] for index in ids)


class Counting(ByteTokenizer):
    """Knows how many tokens it had to decode at one time."""

    longest = 0

    def decode(self, ids):
        self.longest = max(self.longest, len(ids))
        return super().decode(ids)


def pieces(ids, size, *, prompt=(), stop=(), tokenizer=BYTES):
    stream = TextStream(tokenizer, prompt, stop)
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [stream.push(block, last=i == len(blocks) - 1) for i, block in enumerate(blocks)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_hold_whole_characters(size):
    text = "héllo wörld \N{SLIGHTLY SMILING FACE}\N{SLIGHTLY SMILING FACE} 日本語."
    given = pieces(BYTES.encode(text), size, prompt=BYTES.encode("日"))
    assert "".join(given) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(given[:-1])


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_bytes_that_are_no_text_pass_through(size):
    generator = random.Random(0)
    ids = [generator.randrange(3, 259) for _ in range(200)]
    assert "".join(pieces(ids, size)) == BYTES.decode(ids)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_space_before_a_word_is_kept(size):
    assert "".join(pieces([2, 3, 4, 5, 6], size, prompt=[1], tokenizer=Words())) == " b c d e f"
    assert "".join(pieces([2, 3, 4, 5, 6], size, tokenizer=Words())) == "b c d e f"


@pytest.mark.parametrize(
    "options",
    [{}, {"model_type": "bpe", "byte_fallback": True}, {"treat_whitespace_as_suffix": True}],
    ids=["default", "bpe", "suffix"],
)
def test_no_space_of_sentencepiece_is_lost(tmp_path, options):
    """With the normalisation that SentencePiece has by default, which drops the spaces before a text."""
    (tmp_path / "t.txt").write_text("some plain words to train on, and def f(x): return x\n" * 9)
    prefix = str(tmp_path / "t")
    size = 310 if "byte_fallback" in options else 50
    SentencePieceTrainer.train(
        input=f"{prefix}.txt", model_prefix=prefix, vocab_size=size, hard_vocab_limit=False, minloglevel=2, **options
    )
    tokenizer = load_tokenizer(f"{prefix}.model")
    space = SentencePieceProcessor(model_file=f"{prefix}.model").piece_to_id("\u2581")
    draw = random.Random(0)
    for _ in range(500):
        ids = [draw.choice([space, draw.randrange(tokenizer.vocab_size)]) for _ in range(draw.randint(1, 12))]
        ids = [index for index in ids if index != tokenizer.eos_id]
        prompt = [tokenizer.bos_id, *draw.choices(range(3, tokenizer.vocab_size), k=draw.randint(0, 3))]
        expected = tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
        assert "".join(pieces(ids, draw.choice([1, 2, 3, 20]), prompt=prompt, tokenizer=tokenizer)) == expected


def test_an_end_token_ends_the_text():
    stream = TextStream(BYTES, [], [])
    assert stream.push([*BYTES.encode("ab"), BYTES.eos_id, *BYTES.encode("c")]) == "ab"
    assert stream.finished
    assert stream.push(BYTES.encode("d")) == ""


def test_other_end_tokens_replace_the_tokenizers_own():
    a, b = BYTES.encode("ab")
    stream = TextStream(BYTES, [], [], end_ids=[b])
    assert stream.push([a, BYTES.eos_id, a]) == "aa"
    assert stream.push([a, b, a]) == "a"
    assert stream.stopped


def test_of_a_long_prompt_the_end_is_decoded():
    tokenizer = Counting()
    text = "ü" * 1000
    assert "".join(pieces(BYTES.encode("ä!"), 1, prompt=BYTES.encode(text), tokenizer=tokenizer)) == "ä!"
    assert tokenizer.longest < 40


def test_what_may_be_a_stop_string_is_held_back_until_it_is_not():
    stream = TextStream(BYTES, [], ["stop"])
    assert stream.push(BYTES.encode("a st")) == "a "
    assert stream.push(BYTES.encode("o")) == ""
    assert stream.push(BYTES.encode("ne st")) == "stone "
    assert stream.push(BYTES.encode("op!")) == ""
    assert stream.finished


@pytest.mark.parametrize("end", [{"ids": [BYTES.eos_id]}, {"ids": [], "last": True}])
def test_what_was_held_back_is_released_at_the_end(end):
    stream = TextStream(BYTES, [], ["stop"])
    assert stream.push(BYTES.encode("a sto")) == "a "
    assert stream.push(**end) == "sto"
    assert stream.finished


def cut_letter_by_letter(text, stop):
    for end in range(1, len(text) + 1):
        lengths = [len(string) for string in stop if text[:end].endswith(string)]
        if lengths:
            return text[: end - max(lengths)]
    return text


def test_stop_strings_cut_alike_however_the_tokens_come():
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choices("ab", k=12))
        stop = ["".join(generator.choices("ab", k=generator.randint(2, 5))) for _ in range(2)]
        for size in (1, 2, 5, 12):
            assert "".join(pieces(BYTES.encode(text), size, stop=stop)) == cut_letter_by_letter(text, stop), (
                text,
                stop,
            )


@pytest.mark.parametrize("blank", ["\n", " ", " \n\t"])
def test_a_long_run_of_white_space_is_not_decoded_again_and_again(blank):
    tokenizer = Counting()
    text = blank * 300 + "é" + blank * 300
    assert "".join(pieces(BYTES.encode(text), 1, prompt=BYTES.encode("a"), tokenizer=tokenizer)) == text
    assert tokenizer.longest < 40
