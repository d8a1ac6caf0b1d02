"""The papers' comparisons at a budget of minutes: a table of variants, trained alike but for a word of the config.

    python -m benchmarks.study --name=duplication
    python -m benchmarks.study --name=listops --jobs=2
    python -m benchmarks.study --name=text --data=DIR

Every variant is a run of `train.py` in a process of its own. Run again, the command resumes: what has ended is not run
again, and what was interrupted goes on. A variant that fails is reported with its message, the others go on.

DIR holds the data of all studies; each one's `files` in `benchmarks/studies/` says where: `imdb_train.tsv` and
`imdb_test.tsv` (.xz too) for text, `jpg/` with CIFAR-10 as train/CLASS/*.jpg for image, `glue/SST-2/` for sst2,
`enwiki2015_first100M.txt.xz` for masked_lm and both ablations, `an4_mfcc/an4/` for an4, the four IDX files for mnist.
duplication and listops make their own data.

Budgets are for one CPU core and some minutes a variant; on better hardware --overrides=num_steps=30000,batch_size=128
raises them (a value with a comma in it cannot be given so). Writes study_NAME.json and a plot of the curves beside it.
The last line on stdout is a summary in JSON.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.environment import describe_environment, hardware, results_directory
from benchmarks.record import prepare
from benchmarks.studies import STUDIES, Study
from benchmarks.study_report import Row, save_curves, table
from benchmarks.study_runs import make_job, run_jobs
from transnormer_jax import command
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to run a study.

    Attributes:
      data: the directory of all data, for studies with files.
      jobs: variants side by side; each takes its share of the cores.
      runs: where the workdirs lie.
      output: directory of the JSON file and the plot; None is benchmarks/results/<device>.
      overrides: of the config, for all variants, over what the study says.
    """

    data: Path | None = None
    jobs: int = 1
    runs: Path = Path("runs/studies")
    output: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()


def run(study: Study, settings: Settings, command_line: str) -> dict[str, Any]:
    """Trains all variants, prints the table, writes the JSON file and the plot.

    Args:
      study: what to compare.
      settings: where and how.
      command_line: for the record.

    Returns:
      The summary.

    Raises:
      UserError: the data are not there, a directory cannot be made, or there are fewer cores than jobs.
    """
    name = f"study_{study.name}.json"
    if settings.output is not None:
        prepare(settings.output / name)
    more = _data_overrides(study, settings.data) | dict(settings.overrides)
    jobs = [
        make_job(label, variant.config or study.config, study.overrides(variant) | more, settings.runs / study.name)
        for label, variant in study.variants.items()
    ]
    results = run_jobs(jobs, settings.jobs)
    # JAX starts here only: before, it would hold memory of an accelerator that the runs need.
    environment = describe_environment()
    output = (settings.output or results_directory(environment)) / name
    prepare(output)
    rows = [
        Row(job, results[job.label], study.variants[job.label].published, study.metric, study.higher_is_better)
        for job in jobs
    ]
    ended = [row for row in rows if row.result.failed is None]
    references = dict(study.references(read_config(ended[0].job.workdir))) if ended else {}
    print(table(study, rows, references))
    record = {
        "command": command_line,
        "environment": environment,
        "study": study.name,
        "metric": study.metric,
        "higher_is_better": study.higher_is_better,
        "published": study.published,
        "reduced": study.reduced,
        "overrides": dict(settings.overrides),
        "jobs": settings.jobs,
        "references": references,
        "rows": [row.as_json() for row in rows],
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    title = f"{study.name}, on {hardware(environment)}"
    save_curves(study, rows, references, title=title, path=output.with_suffix(".png"))
    return {
        "output": str(output),
        "metric": study.metric,
        "final": {row.job.label: round(row.final, 4) for row in ended},
        "failed": {row.job.label: row.result.failed for row in rows if row.result.failed is not None},
    }


def _data_overrides(study: Study, data: Path | None) -> dict[str, str]:
    if not study.files:
        return {}
    if data is None:
        raise UserError(f"study {study.name!r} needs data: give the directory as --data; --help says what it holds.")
    files = data / study.files
    if not files.exists():
        raise UserError(f"study {study.name!r} needs {str(files)!r}: put it there, or give another --data.")
    return {"data.files": str(files.absolute())}


def _define_flags() -> None:
    # Not on import: flag names are global, and a test may import several commands.
    default = Settings()
    flags.DEFINE_string("name", None, f"Among: {', '.join(STUDIES)}.", required=True)
    flags.DEFINE_string("data", None, "Directory of all data, see above.")
    flags.DEFINE_integer("jobs", default.jobs, "Variants side by side, each on its share of the cores.")
    flags.DEFINE_string("runs", str(default.runs), "Directory of the workdirs.")
    flags.DEFINE_list("overrides", [], "KEY=VALUE,...: keys of the config, for all variants.")
    flags.DEFINE_string(
        "output", None, "Directory of the JSON file and the plot. Default: benchmarks/results/<device>."
    )


def _main() -> None:
    values = flags.FLAGS
    if values.name not in STUDIES:
        raise UserError(f"unknown study {values.name!r}: {did_you_mean(values.name, STUDIES)}")
    pairs = [override.partition("=") for override in values.overrides]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"override {key!r} has no value: give KEY=VALUE.")
    settings = Settings(
        data=None if values.data is None else Path(values.data),
        jobs=values.jobs,
        runs=Path(values.runs),
        output=None if values.output is None else Path(values.output),
        overrides=tuple((key, value) for key, _, value in pairs),
    )
    summary = run(STUDIES[values.name], settings, shlex.join(["python", "-m", "benchmarks.study", *sys.argv[1:]]))
    print(json.dumps(summary))


if __name__ == "__main__":
    _define_flags()
    command.run(_main)
