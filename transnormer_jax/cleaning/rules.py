"""Rules that need one document alone: its language, and what Gopher and FineWeb ask of words, lines and repetition."""

from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import BaseFilter

from transnormer_jax.cleaning.documents import WORDS, writer

# A language shows early, and the classifier's time grows with the text.
_CHARACTERS = 2_000
_ENGLISH = "en"


class LanguageFilter(BaseFilter):
    """Keeps documents in some languages, by py3langid, and writes language and score (0 to 1) into their metadata."""

    name = "Language"

    def __init__(self, languages: tuple[str, ...], exclusion_writer: PipelineStep):
        """Keeps languages by their ISO 639-1 names; an empty tuple keeps all."""
        super().__init__(exclusion_writer)
        self._languages = languages
        self._identifier: Any = None

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """See `BaseFilter`."""
        if self._identifier is None:  # Loaded by the process that works, and not sent to it.
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        language, score = self._identifier.classify(document.text[:_CHARACTERS])
        document.metadata |= {"language": language, "language_score": round(float(score), 4)}
        return True if not self._languages or language in self._languages else (False, f"language_{language}")


def rules(languages: tuple[str, ...], min_words: int, removed: Path) -> list[PipelineStep]:
    """The filters in turn; what one removes is in `removed`, with its reason.

    Thresholds are datatrove's defaults for the rules of Gopher (arXiv 2112.11446) and FineWeb (arXiv 2406.17557), but
    for `min_words`. Gopher's stop words are asked for where English alone is kept.
    """
    stop_words = 2 if languages == (_ENGLISH,) else 0
    return [
        LanguageFilter(languages, writer(removed / "language")),
        GopherRepetitionFilter(language=WORDS, exclusion_writer=writer(removed / "repetition")),
        GopherQualityFilter(
            min_doc_words=min_words,
            min_stop_words=stop_words,
            language=WORDS,
            exclusion_writer=writer(removed / "quality"),
        ),
        FineWebQualityFilter(language=WORDS, exclusion_writer=writer(removed / "lines")),
    ]
