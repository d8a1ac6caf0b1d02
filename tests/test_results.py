"""docs/results.md is what its command makes of the committed records."""

from benchmarks.results_page import PAGE, page


def test_the_page_says_what_the_records_say():
    assert PAGE.read_text() == page()
