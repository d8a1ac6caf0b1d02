"""The studies that `benchmarks.study` runs, by name."""

from benchmarks.studies.language import ABLATION_LLM, ABLATION_TRANSNORMER, MASKED_LM
from benchmarks.studies.sequences import DUPLICATION, IMAGE, LISTOPS, SST2, TEXT
from benchmarks.studies.signals import AN4, MNIST
from benchmarks.studies.study import Study, Variant

STUDIES = {
    study.name: study
    for study in (
        DUPLICATION,
        LISTOPS,
        TEXT,
        IMAGE,
        SST2,
        MASKED_LM,
        AN4,
        MNIST,
        ABLATION_TRANSNORMER,
        ABLATION_LLM,
    )
}

__all__ = ["STUDIES", "Study", "Variant"]
