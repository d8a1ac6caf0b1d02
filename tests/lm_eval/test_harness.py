import json

import numpy as np
import pytest

from tests.commands import run
from tests.inference.letters import CONFIG, log_probabilities, make_params
from tests.tiny_run import write_run
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.inference import Generator

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
"""
CHOICES = """
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROLLING = """
doc_to_target: "{{text}}"
doc_to_text: ""
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
"""
UNTIL = """
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["@@@"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TEXTS = ["The king", "", "a longer text than the others", "x", "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"]
WORDS = [" and", " of the", "s"]


def log_probability(params, text, after=""):
    """The definition, by one pass over the whole."""
    before, own = (np.array(ByteTokenizer().encode(each), int) for each in (after, text))
    row = np.array([[1, *before, *own]])
    before_own = np.arange(len(before), len(before) + len(own))
    return float(log_probabilities(params, row)[0, before_own, own].sum(dtype=np.float64))


@pytest.fixture(scope="module")
def expected_and_tasks(tmp_path_factory):
    params = make_params()
    directory = tmp_path_factory.mktemp("harness")
    write_run(directory / "run", CONFIG, params)
    best = [int(np.argmax([log_probability(params, word, text) for word in WORDS])) for text in TEXTS]
    gold = [best[0], *((index + 1) % len(WORDS) for index in best[1:3]), *best[3:]]
    generator = Generator(CONFIG, params, ByteTokenizer())
    continuations = [generator.generate([text], max_new_tokens=12)[0] for text in TEXTS]
    answers = [text if i != 1 else text + "!" for i, text in enumerate(continuations)]
    documents = [
        {"text": text, "gold": right, "choices": WORDS, "answer": answer}
        for text, right, answer in zip(TEXTS, gold, answers, strict=True)
    ]
    for name, kind, rest in (
        ("words", "multiple_choice", CHOICES),
        ("bytes", "loglikelihood_rolling", ROLLING),
        ("writing", "generate_until", UNTIL),
    ):
        file = directory / f"{name}.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in documents if each["text"] or name != "bytes"))
        (directory / f"{name}.yaml").write_text(TASK.format(name=f"tnl_{name}", file=file, kind=kind) + rest)

    whole = [text for text in TEXTS if text]
    nats = sum(log_probability(params, text) for text in whole)
    bits_per_byte = -nats / sum(len(text.encode()) for text in whole) / np.log(2)
    return directory, {"acc": 3 / 5, "bits_per_byte": bits_per_byte, "exact_match": 4 / 5}


# Without the harness's own tasks, whose index takes it longer than all else here.
COMMAND = """
import functools, runpy, lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("transnormer_jax.lm_eval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_tasks_of_all_three_kinds(expected_and_tasks):
    directory, expected = expected_and_tasks
    (directory / "command.py").write_text(COMMAND)
    status, out, err = run(
        *(directory / "command.py", f"--workdir={directory / 'run'}", f"--include_path={directory}"),
        *("--tasks=tnl_words,tnl_bytes,tnl_writing", "--batch_size=4", f"--out={directory / 'results.json'}"),
    )
    assert status == 0, err
    assert "tnl_writing" in out
    results = json.loads((directory / "results.json").read_text())["results"]
    assert results["tnl_words"]["acc,none"] == expected["acc"]
    assert results["tnl_writing"]["exact_match,none"] == expected["exact_match"]
    np.testing.assert_allclose(results["tnl_bytes"]["bits_per_byte,none"], expected["bits_per_byte"], rtol=1e-5)


@pytest.mark.slow
def test_repeated_requests_are_drawn_apart():
    from lm_eval.api.instance import Instance

    from transnormer_jax.lm_eval.model import TransNormerHarness

    harness = TransNormerHarness(Generator(CONFIG, make_params(), ByteTokenizer()), batch_size=2)
    asked = ("The", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})
    requests = [Instance("generate_until", {}, asked, i) for i in range(6)]
    assert len(set(harness.generate_until(requests))) == 6
