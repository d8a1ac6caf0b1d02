"""The datasets of the papers' comparisons: labelled examples, images, speech, and generated sequences."""

from transnormer_jax.papers.data import aan, an4, cifar10, glue, imdb, listops, mnist, pathfinder, wikitext
from transnormer_jax.papers.data.duplication import DuplicationRows
from transnormer_jax.papers.data.example_rows import ExampleRows, HeldOutExamples, ImageRows
from transnormer_jax.papers.data.examples import Examples, load_examples

__all__ = [
    "DuplicationRows",
    "ExampleRows",
    "Examples",
    "HeldOutExamples",
    "ImageRows",
    "aan",
    "an4",
    "cifar10",
    "glue",
    "imdb",
    "listops",
    "load_examples",
    "mnist",
    "pathfinder",
    "wikitext",
]
