import json
import tarfile

import numpy as np
import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.shared import shared_file
from transnormer_jax.data import load_tokenizer
from transnormer_jax.data.tokenizer_export import write_tokenizer
from transnormer_jax.errors import UserError

TEXTS = [
    "",
    "plain words\n",
    "été 数学 ﷽ 🤖\u200d🚀 \x00\r\n\t  end ",
    "<s></s><|endoftext|> def f(x):\n    return x\n",
]
TRAINING = ["some plain words to train on", "def f(x): return x", "</s>", "more words, more words"] * 20


def byte_level_bpe():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def hugging_face_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer = byte_level_bpe()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(path))
    return path


def gpt2_directory(tmp_path):
    byte_level_bpe().model.save(str(tmp_path))
    return tmp_path


def sentencepiece_file(tmp_path, **options):
    (tmp_path / "training.txt").write_text("\n".join(TRAINING))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "training.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
        **options,
    )
    return tmp_path / "tokenizer.model"


@pytest.fixture(params=["bytes", hugging_face_file, gpt2_directory, sentencepiece_file])
def tokenizer(request, tmp_path):
    return load_tokenizer("bytes" if request.param == "bytes" else str(request.param(tmp_path)))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_never_encodes_to_special_tokens_and_ids_are_in_the_vocabulary(tokenizer):
    ids = tokenizer.encode("".join(TEXTS))
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size


def test_decoding_drops_special_tokens_and_ids_past_the_vocabulary(tokenizer):
    ids = tokenizer.encode("words")
    padded = [tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size + 5]
    assert tokenizer.decode(np.array(padded)) == "words"


def test_a_batch_is_its_texts(tokenizer):
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == [tokenizer.encode(text) for text in TEXTS]


def test_decoding_a_growing_list_ends_in_the_text(tokenizer):
    ids = tokenizer.encode("naïve 数")
    assert [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)][-1] == "naïve 数"


def test_bytes_are_numbered_after_the_special_tokens():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 2, 259)
    assert tokenizer.encode("\x00é") == [3, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([3 + 0xC3]) == "�"


def test_a_vocabulary_with_an_end_token_only_uses_it_for_all_three(tmp_path):
    tokenizer = load_tokenizer(str(hugging_face_file(tmp_path)))
    assert tokenizer.bos_id == tokenizer.pad_id == tokenizer.eos_id == 0


def test_sentencepiece_names_its_own_special_tokens(tmp_path):
    tokenizer = load_tokenizer(str(sentencepiece_file(tmp_path, pad_id=3)))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 3, 320)


def test_a_directory_is_searched_for_its_tokenizer(tmp_path):
    path = sentencepiece_file(tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == load_tokenizer(str(path)).fingerprint


def test_fingerprints_tell_tokenizers_apart(tmp_path):
    paths = [hugging_face_file(tmp_path), gpt2_directory(tmp_path / ".."), sentencepiece_file(tmp_path)]
    assert len({load_tokenizer(str(name)).fingerprint for name in ["bytes", *paths]}) == 4


def test_gpt2_vocabulary(tmp_path):
    with tarfile.open(shared_file("data/tokenizers_gpt2.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (vocabulary,) = tmp_path.rglob("encoder.json")
    tokenizer = load_tokenizer(str(vocabulary.parent))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    # From the tokenizer that OpenAI published with the vocabulary.
    assert tokenizer.encode("Hello world") == [15496, 995]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "unknown tokenizer '.*': use 'bytes' or the path"),
        (("tokenizer.json", "{"), "cannot read the tokenizer"),
        (("tokenizer.model", "nonsense"), "cannot read the tokenizer"),
        (("vocab.json", "{}"), "cannot read the tokenizer"),
        (("words.txt", "a b"), "no tokenizer in '.*': it should be, or hold, one of tokenizer.json"),
    ],
)
def test_no_such_tokenizer_is_the_users_error(tmp_path, content, message):
    path = tmp_path / "tokenizer"
    if content:
        path.mkdir()
        (path / content[0]).write_text(content[1])
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(path))


def test_a_vocabulary_without_an_end_token_is_the_users_error(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no end token: add one of </s>"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="has no end token: train it"):
        load_tokenizer(str(sentencepiece_file(tmp_path, eos_id=-1)))


def with_names(directory, names):
    """A vocabulary of bytes with these special tokens."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens([*names])
    tokenizer.save(str(directory / "tokenizer.json"))
    return {name: tokenizer.token_to_id(name) for name in names}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("form", [str, lambda name: {"content": name, "lstrip": False}])
def test_declared_ends_win_over_guessed_names(tmp_path, file, form, encoding):
    ids = with_names(tmp_path, ["<s>", "</s>", "<|begin|>", "<|endofturn|>", "<fill>"])
    guessed = load_tokenizer(str(tmp_path))
    assert (guessed.bos_id, guessed.eos_id) == (ids["<s>"], ids["</s>"])
    declared = {"bos_token": "<|begin|>", "eos_token": "<|endofturn|>", "pad_token": "<fill>"}
    content = {kind: form(name) for kind, name in declared.items()}
    (tmp_path / file).write_text(json.dumps(content), encoding=encoding)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.token_names == declared
    assert [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id] == [ids[name] for name in declared.values()]
    assert tokenizer.fingerprint != guessed.fingerprint
    if encoding == "utf-8" and form is str:  # `transformers` reads no byte order mark, and another form of objects
        assert PreTrainedTokenizerFast.from_pretrained(tmp_path).eos_token_id == tokenizer.eos_id


def test_the_configuration_wins_over_the_map_and_null_is_no_begin(tmp_path):
    ids = with_names(tmp_path, ["<s>", "</s>", "<|im_end|>"])
    before = load_tokenizer(str(tmp_path))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "unk_token": "?"}')
    assert load_tokenizer(str(tmp_path)).fingerprint == before.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "<|im_end|>", "bos_token": null, "pad_token": "[PAD]"}'
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == ids["<|im_end|>"]
    assert tokenizer.token_names == {"eos_token": "<|im_end|>"}


def test_tokens_that_only_the_configuration_adds(tmp_path):
    path = sentencepiece_file(tmp_path)
    added = {"320": {"content": "<|im_end|>", "special": True}, "321": {"content": "word", "special": False}}
    content = {"eos_token": "<|im_end|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (320, 321)
    assert 320 not in tokenizer.encode("more <|im_end|>")
    assert tokenizer.decode([*tokenizer.encode("more words"), 320]) == "more words"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"cannot read '.*tokenizer_config\.json'"),
        ("[]", r"tokenizer_config\.json' holds no JSON object"),
        ('{"eos_token": 3}', "declare the special token 3"),
        ('{"eos_token": "<|x|>"}', "declare '<|x|>' as its eos_token, which is not in the vocabulary"),
        ('{"added_tokens_decoder": {"x": 3}}', "added_tokens_decoder"),
    ],
)
def test_broken_declarations_are_the_users_error(tmp_path, content, message):
    with_names(tmp_path, ["</s>"])
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("source", ["bytes", hugging_face_file, gpt2_directory, sentencepiece_file])
def test_what_is_exported_is_read_by_transformers(tmp_path, source):
    own, target = tmp_path / "own", tmp_path / "exported"
    own.mkdir()
    name = "bytes" if source == "bytes" else str(source(own))
    write_tokenizer(target, name)
    ours, exported = load_tokenizer(name), load_tokenizer(str(target))
    assert exported.fingerprint == ours.fingerprint
    theirs = AutoTokenizer.from_pretrained(target)
    assert theirs.eos_token_id == ours.eos_id
    for text in ["", "plain words\n", "def f(x):\n    return  x\n", "été 数学 ﷽ 🤖"]:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text


def test_text_cannot_write_a_declared_end_that_is_an_ordinary_token_of_the_vocabulary(tmp_path):
    sentencepiece_file(tmp_path, user_defined_symbols=["<|im_end|>", "<é\n>"])
    with_added = byte_level_bpe()
    with_added.add_tokens(["<|im_end|>", "<é\n>"])
    (tmp_path / "hf").mkdir()
    with_added.save(str(tmp_path / "hf" / "tokenizer.json"))
    text = "words<|im_end|> words<é\n>"
    for directory in (tmp_path, tmp_path / "hf"):
        assert {"<|im_end|>", "<é\n>"} <= names_in(load_tokenizer(str(directory)), text)
        added = {"299": {"content": "<é\n>", "special": True}}
        settings = {"eos_token": "<|im_end|>", "added_tokens_decoder": added}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = load_tokenizer(str(directory))
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == text
        assert [each.tolist() for each in tokenizer.encode_batch([text, "words"])] == [ids, tokenizer.encode("words")]
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == text


def names_in(tokenizer, text):
    return {name for name in ("<|im_end|>", "<é\n>") if tokenizer.encode(name)[-1] in tokenizer.encode(text)}


def test_a_negative_id_is_no_added_token(tmp_path):
    hugging_face_file(tmp_path)
    settings = {"eos_token": "<e>", "added_tokens_decoder": {"-5": {"content": "<e>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"added_tokens_decoder in tokenizer_config\.json cannot be read"):
        load_tokenizer(str(tmp_path))
