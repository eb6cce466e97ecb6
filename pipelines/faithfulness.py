"""Faithfulness: holds every profile of a run against the facts of its prompt, and counts what agrees.

Reads logs and profiles; writes faithfulness.json (longtail.faithfulness, whose docstring defines every measure). Another model is another config: a run whose
[profiles] names it.

Run: python -m pipelines.faithfulness --config … Prints a table; last stdout line: one JSON object.
"""

import json

import pyarrow.parquet as pq

from longtail.artifacts import Artifact, Draft
from longtail.config import Config
from longtail.faithfulness import Catalogue, FaithfulnessResults, Tally, added, results, table, tally
from longtail.run_state import logs_info
from pipelines import work
from pipelines.errors import clear_errors
from pipelines.logs import LOGS
from pipelines.profiles import PROFILES
from pipelines.stage import Context, Result, Stage, built, summary

COLUMNS = ["identity", "interests", "philosophy", "facts", "raw_text", "outcome", "prompt_tokens", "output_tokens"]


def of_row_group(logs: Artifact, profiles: Artifact, group: int, max_output_tokens: int) -> Tally:
    """The tally of one row group of the profiles."""
    catalogue = Catalogue.of(logs.read("users"), logs.read("items", ["item_id", "category"]), logs_info(logs))
    with pq.ParquetFile(profiles.path("profiles.parquet"), filesystem=profiles.fs) as file:
        return tally(file.read_row_group(group, columns=COLUMNS).to_pylist(), catalogue, max_output_tokens)


def _build(context: Context, draft: Draft) -> Result:
    settings, logs, profiles = context.config.profiles, context.inputs["logs"], context.inputs["profiles"]
    metadata = pq.read_metadata(profiles.path("profiles.parquet"), filesystem=profiles.fs)
    num_rows = metadata.num_rows
    parts = work.tasks(of_row_group, [(logs, profiles, group, settings.max_output_tokens) for group in range(metadata.num_row_groups)])
    llm = {"model": settings.model, "answer_form": settings.answer_form, "weights": profiles.info["weights"]} if settings.generator == "llm" else {}
    found = results(added(parts), {"generator": settings.generator, **llm})
    draft.write_json("faithfulness.json", found.model_dump(mode="json"))
    return Result(rows_in=num_rows, rows_out=num_rows, info={"outcomes": found.outcomes})


def _settings(config: Config) -> dict[str, object]:
    """What an answer is read with; everything else is the profiles' own."""
    return {"max_output_tokens": config.profiles.max_output_tokens}


FAITHFULNESS = Stage(
    name="faithfulness",
    version=1,
    inputs=(LOGS, PROFILES),
    settings=_settings,
    build=_build,
    command="pipelines.faithfulness",
)


def main() -> None:
    with clear_errors():
        outcome = built(FAITHFULNESS, __doc__ or "")
        found = FaithfulnessResults.model_validate(outcome.artifact.read_json("faithfulness.json"))
        print(table(found))
        failures = {"format_failures": found.format_failures, "content_refusals": found.content_refusals}
        print(json.dumps({"faithfulness": summary(outcome), "outcomes": found.outcomes, **failures}))


if __name__ == "__main__":
    main()
