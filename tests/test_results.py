"""The pages of results are what their commands make of the committed records."""

from benchmarks import published_page, results_page


def test_the_figures_are_those_of_the_records():
    assert results_page.PAGE.read_text() == results_page.page()


def test_every_record_is_on_the_page():
    records = {str(path.relative_to(results_page.RECORDS)) for path in results_page.RECORDS.rglob("*.json")}
    shown = results_page.page()
    assert records
    for record in records:
        assert f"(../../benchmarks/results/{record})" in shown


def test_the_published_numbers_stand_beside_those_of_the_records():
    assert published_page.PAGE.read_text() == published_page.page()
