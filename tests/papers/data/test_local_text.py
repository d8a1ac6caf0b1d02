import gzip
import lzma
from collections import Counter

import pytest

from tests.papers.data.local_files import read, unpack, write_reviews
from tests.shared import shared_file
from transnormer_jax.data import ByteTokenizer, DataConfig, load_split
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.aan import AanFiles
from transnormer_jax.papers.data.glue import GlueFiles
from transnormer_jax.papers.data.imdb import ImdbFiles
from transnormer_jax.papers.data.local_files import read_rows
from transnormer_jax.papers.data.wikitext import WikiTextFiles, read_articles

# Rows and the rows of each class, from the papers and the public builders.
GLUE_SIZES = {
    "cola": {"train": 8551, "validation": 1043, "test": 1063},
    "sst2": {"train": 67349, "validation": 872},
    "mrpc": {"train": 4076, "test": 1725},
    "stsb": {"train": 5749, "validation": 1500, "test": 1379},
    "qnli": {"validation": 5463, "test": 5463},
    "rte": {"train": 2490, "validation": 277, "test": 3000},
    "wnli": {"train": 635, "validation": 71, "test": 146},
}


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    directory = tmp_path_factory.mktemp("glue")
    unpack("glue_bench.tar.xz", directory, "glue/")
    return directory


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_reviews_plain_or_compressed(tmp_path, suffix):
    write_reviews(tmp_path, 4)
    for path in list(tmp_path.iterdir()) if suffix else []:
        compress = {".gz": gzip.compress, ".xz": lzma.compress}[suffix]
        path.with_name(path.name + suffix).write_bytes(compress(path.read_bytes()))
        path.unlink()
    splits = read(ImdbFiles.at("imdb_reviews", str(tmp_path), str(tmp_path / "data")))
    assert [example["label"] for example in splits["test"]] == ["neg", "pos", "neg", "pos"]
    assert splits["train"][3]["text"] == "this train film is number 3"


def test_a_changed_file_is_a_new_dataset(tmp_path):
    def name():
        return ImdbFiles.at("imdb_reviews", str(tmp_path), str(tmp_path / "data")).builder_config.name

    write_reviews(tmp_path)
    before = name()
    assert name() == before
    write_reviews(tmp_path, 21)
    assert name() != before


def test_pairs_of_papers(tmp_path):
    for split in ("train", "eval", "test"):
        (tmp_path / f"new_aan_pairs.{split}.tsv").write_text(f'1.0\ta\tb\t{split} a\t"b"\n0\tc\td\tc\td\n')
    splits = read(AanFiles.at("aan", str(tmp_path), str(tmp_path / "data")))
    assert splits["validation"] == [
        {"text1": "eval a", "text2": '"b"', "label": 1},
        {"text1": "c", "text2": "d", "label": 0},
    ]


def test_glue_as_it_is_published(tmp_path):
    folder = tmp_path / "SST-2"
    folder.mkdir()
    (folder / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\nfair\t1\n")
    (folder / "test.tsv").write_text("index\tsentence\n0\tsecret\n")
    expected = {
        "train": [{"sentence": "good", "label": 1, "idx": 0}, {"sentence": "bad", "label": 0, "idx": 1}],
        "validation": [{"sentence": "fair", "label": 1, "idx": 0}],
        "test": [{"sentence": "secret", "label": -1, "idx": 0}],
    }
    for files in (tmp_path, folder):
        assert read(GlueFiles.at("glue/sst2", str(files), str(tmp_path / "data"))) == expected


def test_a_task_never_reads_the_files_of_another(tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("gj04\t1\t\tA sentence.\n")
    with pytest.raises(UserError, match="no file of dataset 'glue/sst2'"):
        GlueFiles.at("glue/sst2", str(tmp_path), str(tmp_path / "data"))


@pytest.mark.parametrize("task", GLUE_SIZES)
def test_glue_has_its_published_sizes(tmp_path, glue, task):
    splits = read(GlueFiles.at(f"glue/{task}", str(glue), str(tmp_path / "data")))
    assert {split: len(examples) for split, examples in splits.items()} == GLUE_SIZES[task]


def test_glue_labels_mean_what_the_public_builder_says(tmp_path, glue):
    def first(task, split):
        return read(GlueFiles.at(f"glue/{task}", str(glue), str(tmp_path / "data")))[split][0]

    assert first("rte", "train") == {
        "sentence1": "No Weapons of Mass Destruction Found in Iraq Yet.",
        "sentence2": "Weapons of Mass Destruction Found in Iraq.",
        "label": 1,
        "idx": 0,
    }
    assert first("sst2", "validation")["sentence"].startswith("it 's a charming and often affecting journey")
    assert first("sst2", "validation")["label"] == 1
    assert first("stsb", "train")["label"] == 5.0


def test_pairs_of_questions_but_for_the_damaged_row(tmp_path, glue):
    examples = read(GlueFiles.at("glue/qqp", str(glue), str(tmp_path / "data")))["train"]
    assert Counter(example["label"] for example in examples) == {0: 14749, 1: 8747}


@pytest.mark.slow
def test_imdb_is_complete_and_balanced():
    for split in ("train", "test"):
        labels = Counter(row[0] for row in read_rows(shared_file(f"data/imdb_{split}.tsv.xz")))
        assert labels == {"pos": 12500, "neg": 12500}


def test_a_file_of_another_kind_is_the_users_error(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("a\tb\n" * 90 + "a\n" * 10)
    with pytest.raises(UserError, match=r"10 of 100 rows of .* have not 2 fields: give an intact file"):
        list(read_rows(path))


FORMULA = " = k = \n and \n \n = c = \n of a filter \n"
WIKI = f" \n = First = \n \n text \n = = Section = = \n \n more \n{FORMULA} \n = Second = \n \n end \n"


def test_articles_begin_at_their_titles_and_lose_nothing():
    articles = list(read_articles(iter(WIKI.splitlines(keepends=True))))
    assert [article.splitlines()[0] for article in articles] == [" = First = ", " = Second = "]
    assert "".join(articles) == WIKI.removeprefix(" \n")


def test_wikitext_takes_the_splits_that_are_there(tmp_path):
    (tmp_path / "wiki.valid.tokens").write_text(WIKI)
    config = DataConfig(dataset="wikitext", files=str(tmp_path), data_dir=str(tmp_path / "data"))
    assert len(load_split(config, ByteTokenizer(), "validation")) == 2
    with pytest.raises(UserError, match="no split 'train'"):
        load_split(config, ByteTokenizer(), "train")


def test_wikitext_2_has_its_articles(tmp_path):
    unpack("wikitext2_shakespeare.tar.xz", tmp_path, "wikitext2/")
    splits = read(WikiTextFiles.at("wikitext", str(tmp_path), str(tmp_path / "data")))
    assert {split: len(articles) for split, articles in splits.items()} == {"validation": 60, "test": 60}
