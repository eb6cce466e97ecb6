"""Completion: masks known user attributes, lets groups, neighbours and trees fill them in, and measures who is right.

Reads logs, and user spaces and user codes at the first as_of; writes completion.json (longtail.completion_results). Profiles name attributes and groups are
made of profiles, so where a space tells the attributes, masked values are struck out of it first: profiles are embedded again without them, and the codebook
is fitted again on what comes out. A group must not be told what it is asked. In free answers a value can stand in words of the model's own, and those stay;
completion.struck = false leaves all of them in and so shows what the texts give away.

Run: python -m pipelines.completion --config … [--set completion.masked=users]. Prints a table; last stdout line: one JSON object.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact, Draft
from longtail.codes import encode, fit_here
from longtail.completion import METHODS, Bools, Codes, Evidence, Filled, Floats, Ints, check_left, draw_mask, fill_in, group_votes, measured, user_statistics
from longtail.completion_results import CompletionResults, compare, table
from longtail.config import Config
from longtail.embeddings import TextEncoder
from longtail.entities import Entities
from longtail.profile_facts import is_missing, label, shown_value
from longtail.profile_text import Fields, without
from longtail.profiles import FIELDS
from longtail.run_state import load_behaviour, load_entities
from longtail.settings import own_seed
from longtail.snapshots import as_of_us
from longtail.user_spaces import attribute_vectors, replaced
from longtail.vectors import to_numpy
from pipelines import work
from pipelines.codes import USER_CODES
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.errors import clear_errors
from pipelines.logs import LOGS
from pipelines.profiles import PROFILES
from pipelines.stage import Context, Result, Stage, built, summary
from pipelines.user_spaces import USER_SPACES


@dataclass(frozen=True)
class Asked:
    """Who is asked for what: the users at the first as_of, and the attributes that can be measured."""

    user_ids: pa.Array
    rows_R: Ints
    columns: list[int]
    truth_RA: Codes
    masks: list[Bools]


def _build(context: Context, draft: Draft) -> Result:
    config, settings = context.config, context.config.completion
    logs = context.inputs["logs"]
    entities = load_entities(logs, config.samples.numeric_bins)
    codes = _first_snapshot(context.inputs["user_codes"], "codes")
    rows_R = entities.users.encode(codes.column("user_id")).astype(np.int64)
    names = [coding.name for coding in entities.attributes]
    columns, left_out = measured(entities.attribute_codes_MA[rows_R], names, settings)
    truth_RA = entities.attribute_codes_MA[rows_R][:, columns]
    masks = [draw_mask(truth_RA, settings, (context.seed, number)) for number in range(settings.num_masks)]
    check_left(truth_RA, masks, [names[column] for column in columns], settings)
    first_us = int(as_of_us(codes)[0])
    asked = Asked(codes.column("user_id").combine_chunks(), rows_R, columns, truth_RA, masks)
    spaces, notes = _spaces(context, entities, asked)
    statistics_RF = user_statistics(load_behaviour(logs, config.samples.numeric_bins), entities, rows_R, first_us)
    sizes = [entities.attributes[column].size for column in columns]
    codes_RS = codes.column("codes").combine_chunks().flatten().to_numpy().reshape(len(codes), -1)
    kept = None if notes["struck"] else codes_RS
    jobs = [
        (truth_RA, mask, sizes, vectors_RD, kept, statistics_RF, config, number) for number, (mask, vectors_RD) in enumerate(zip(masks, spaces, strict=True))
    ]
    filled = work.tasks(fill_one, jobs)
    _, nearest_RA = group_votes(codes_RS, truth_RA, sizes, config.groups)
    by_attribute, overall = compare([names[column] for column in columns], truth_RA, nearest_RA, masks, filled, settings.bootstrap_rounds, context.seed)
    found = CompletionResults(users=len(rows_R), masks=len(masks), attributes=by_attribute, overall=overall, left_out=left_out, notes=notes)
    draft.write_json("completion.json", found.model_dump(mode="json"))
    return Result(rows_in=len(rows_R), rows_out=len(rows_R), info={"left_out": left_out, **notes})


def fill_one(
    truth_RA: Codes, masked_RA: Bools, sizes: list[int], vectors_RD: Floats, codes_RS: Codes | None, statistics_RF: Floats, config: Config, number: int
) -> Filled:
    """Every method's answers to one mask; without `codes_RS` the codebook is fitted on the vectors first."""
    if codes_RS is None:
        users = config.codes.user
        codes_RS = encode(vectors_RD, fit_here(vectors_RD, users, own_seed(users.seed, config.run.seed)).codebook_SKD)
    return fill_in(truth_RA, masked_RA, sizes, Evidence(codes_RS, vectors_RD, statistics_RF), config.groups, config.completion, config.run.seed + number)


def _first_snapshot(artifact: Artifact, name: str) -> pa.Table:
    """A table's rows of the first as_of, by user_id."""
    rows = artifact.read(name)
    return rows.filter(pc.equal(rows.column("as_of"), pc.min(rows.column("as_of")))).sort_by("user_id")


def _spaces(context: Context, entities: Entities, asked: Asked) -> tuple[list[Floats], dict[str, object]]:
    """The users' vectors, mask by mask, and what had to be struck out of them."""
    settings = context.config.user_spaces
    found = _first_snapshot(context.inputs["user_spaces"], "vectors")
    assert found.column("user_id").combine_chunks().equals(asked.user_ids), "codes and spaces are of other users"
    vectors_RD = to_numpy(found.column("vector"))
    telling = [space for space in settings.spaces if space in ("profile", "attributes")]
    notes: dict[str, object] = {"spaces": list(settings.spaces), "telling": telling, "struck": False}
    if not telling or settings.shuffled or not context.config.completion.struck:  # dealt to the wrong users, they tell nobody's own
        return [vectors_RD] * len(asked.masks), notes
    anew: dict[str, list[Floats]] = {}
    if "attributes" in telling:
        anew["attributes"] = [_attributes_left(entities, asked, mask) for mask in asked.masks]
    if "profile" in telling:
        anew["profile"], told = _profiles_left(context, entities, asked)
        notes["told_frac"] = told
    widths = _widths(context, entities, vectors_RD.shape[1])
    places = {settings.spaces.index(space): blocks for space, blocks in anew.items()}
    notes["struck"] = True
    return [replaced(vectors_RD, widths, {place: blocks[number] for place, blocks in places.items()}) for number in range(len(asked.masks))], notes


def _widths(context: Context, entities: Entities, total: int) -> list[int]:
    """Numbers of each space in a vector."""
    of = {"profile": context.inputs["user_vectors"].info["dim"], "titles": context.inputs["item_vectors"].info["dim"]}
    of["attributes"] = attribute_vectors(entities.attribute_codes_MA).shape[1]
    spaces = context.config.user_spaces.spaces
    of["behaviour"] = total - sum(of[space] for space in spaces if space != "behaviour")
    return [of[space] for space in spaces]


def _attributes_left(entities: Entities, asked: Asked, masked_RA: Bools) -> Floats:
    left_MA = entities.attribute_codes_MA.copy()
    left_MA[asked.rows_R[:, None], asked.columns] = np.where(masked_RA, 0, asked.truth_RA)
    return attribute_vectors(left_MA)[asked.rows_R]


def _profiles_left(context: Context, entities: Entities, asked: Asked) -> tuple[list[Floats], float]:
    """Vectors of the profiles without what is masked, mask by mask, and the share of the masked values that the texts told."""
    encoder = context.config.embeddings.user
    vectors = _first_snapshot(context.inputs["user_vectors"], "vectors")
    profiles = _first_snapshot(context.inputs["profiles"], "profiles")
    whole = [Fields(*parts) for parts in zip(*(profiles.column(name).to_pylist() for name in FIELDS), strict=True)]
    users = context.inputs["logs"].read("users").sort_by("user_id")
    values = [
        (coding.name, users.column(coding.name).take(pa.array(asked.rows_R - 1)).to_pylist()) for coding in (entities.attributes[c] for c in asked.columns)
    ]
    texts, told = [], 0
    for masked_RA in asked.masks:
        texts.append(
            [
                struck(whole[row], [(name, column[row]) for (name, column), hidden in zip(values, masked_RA[row], strict=True) if hidden])
                for row in range(len(whole))
            ]
        )
        told += sum(count for _, count in texts[-1])
    changed = [[(row, text) for row, (text, count) in enumerate(one) if count] for one in texts]
    distinct = sorted({text for one in changed for _, text in one})
    (encoded,) = work.pool(TextEncoder, (encoder,), "encode", [(distinct,)], {"embeddings.user": encoder.compute}, context.config.cluster)
    place = {text: number for number, text in enumerate(distinct)}
    found = []
    for one in changed:
        blind_RD = to_numpy(vectors.column("vector")).copy()
        blind_RD[[row for row, _ in one]] = encoded[[place[text] for _, text in one]]
        found.append(blind_RD)
    return found, told / sum(int(mask.sum()) for mask in asked.masks)


def struck(fields: Fields, hidden: Sequence[tuple[str, object]]) -> tuple[str, int]:
    """A profile's text without some of the user's attributes, by name and value, and how many of them it told."""
    parts, told = [fields.identity, fields.interests, fields.philosophy], 0
    for name, value in hidden:
        assert not is_missing(value), "what is masked is known"
        left = [without(part, label(name), shown_value(value)) for part in parts]
        told += left != parts
        parts = left
    return Fields(*parts).text, told


def _settings(config: Config) -> dict[str, object]:
    """The values that decide the answers beside the inputs: how groups vote, and what blind vectors and codes are made with."""
    return {
        "completion": config.completion.key_fields(),
        "groups": {"min_support": config.groups.min_support, "min_size": config.groups.min_size},
        "numeric_bins": config.samples.numeric_bins,
        "user_spaces": config.user_spaces.key_fields(),
        "codes": config.codes.user.key_fields(),
        "encoder": config.embeddings.user.key_fields(),
    }


COMPLETION = Stage(
    name="completion",
    version=1,
    inputs=(LOGS, PROFILES, USER_VECTORS, ITEM_VECTORS, USER_SPACES, USER_CODES),
    settings=_settings,
    build=_build,
    command="pipelines.completion",
)


def main() -> None:
    with clear_errors():
        outcome = built(COMPLETION, __doc__ or "")
        found = CompletionResults.model_validate(outcome.artifact.read_json("completion.json"))
        print(table(found))
        overall = {name: {"accuracy": round(found.overall[name].accuracy, 4), "balanced": round(found.overall[name].balanced, 4)} for name in METHODS}
        print(json.dumps({"completion": summary(outcome), "overall": overall, "left_out": found.left_out}))


if __name__ == "__main__":
    main()
