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
from pipelines.cluster import ray_session
from pipelines.logs import LOGS
from pipelines.profiles import PROFILES
from pipelines.stage import Context, Result, Stage, arguments, clear_errors, config_from, ensure, open_store, summary

COLUMNS = ["identity", "interests", "philosophy", "facts", "raw_text", "outcome", "prompt_tokens", "output_tokens"]
ROWS_PER_TASK = 20_000


def of_rows(logs: Artifact, profiles: Artifact, start: int, max_output_tokens: int) -> Tally:
    """The tally of some of the profiles."""
    catalogue = Catalogue.of(logs.read("users"), logs.read("items", ["item_id", "category"]), logs_info(logs))
    return tally(profiles.read("profiles", COLUMNS).slice(start, ROWS_PER_TASK).to_pylist(), catalogue, max_output_tokens)


def _build(context: Context, draft: Draft) -> Result:
    settings, logs, profiles = context.config.profiles, context.inputs["logs"], context.inputs["profiles"]
    num_rows = pq.read_metadata(profiles.path("profiles.parquet"), filesystem=profiles.fs).num_rows
    parts = work.tasks(of_rows, [(logs, profiles, start, settings.max_output_tokens) for start in range(0, num_rows, ROWS_PER_TASK)])
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
        config = config_from(arguments(__doc__ or ""))
        store = open_store(config)
        with ray_session(config.cluster):
            outcome = ensure(FAITHFULNESS, config, store, build_inputs=True)
        found = FaithfulnessResults.model_validate(outcome.artifact.read_json("faithfulness.json"))
        print(table(found))
        failures = {"format_failures": found.format_failures, "content_refusals": found.content_refusals}
        print(json.dumps({"faithfulness": summary(outcome), "outcomes": found.outcomes, **failures}))


if __name__ == "__main__":
    main()
