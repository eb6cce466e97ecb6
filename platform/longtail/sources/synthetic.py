"""A synthetic world whose truth is known: planted user groups, planted item semantics, impression -> click -> purchase, searches.

- Every item has one topic, which shows in its title's words alone: category, brand and price are drawn independently of it, and of each other.
- Every group likes a few topics; a user likes the group's and one of their own. With one group there is none, and users still share topics by chance;
  with `tastes = "own"` nobody shares anything: that is the world in which groups and neighbours must be worth nothing.
- Whether an impression is clicked, and a click bought, depends on taste (topic) and on the item's own appeal; nothing else.
- Searches speak the words of a topic that the user likes. Two of three categorical attributes follow the group for some users, and are often missing.
- Quiet users come rarely, busy ones often. Cold items are first shown in the test window.
- With `drift`, titles speak of themes below the topics, and themes change topics as time goes by (longtail.sources.drift).

Letters: U users, I items, T topics, H themes, G groups, S sessions, X impressions.
"""

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from longtail import schema
from longtail.labels import Labels
from longtail.negatives import Negatives
from longtail.settings import Settings
from longtail.sources.drift import Drift, DriftSettings
from longtail.sources.raw import RawLogs
from longtail.times import DAY_US
from longtail.windows import SplitSettings, Windows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Block = tuple[str, Ints, Ints | None, Ints, Ints]  # kind, users, items, times, sessions

START_US = 1_704_067_200_000_000  # 2024-01-01
MINUTE_US = 60_000_000
CLICK_LIKED, CLICK_OTHER = 0.40, 0.06
BUY_LIKED, BUY_OTHER = 0.55, 0.15
QUIET_SHARE = 0.1  # sessions of a quiet user beside a busy one's
COLD_SHARE = 0.25  # impressions kept for the items that were launched in the test window
SEARCH_FRAC = 0.3  # sessions that begin with a search

TOPICS = (
    "sail harbor anchor rigging nautical tide",
    "violin cello orchestra sonata bow rosin",
    "tent hiking trail campfire backpack summit",
    "espresso roast grinder barista crema beans",
    "orchid greenhouse seedling pruning fern soil",
    "telescope comet nebula lens stargazing orbit",
    "dinosaur fossil jurassic museum amber excavation",
    "yoga meditation breathing mat incense calm",
    "chess opening gambit checkmate rook clock",
    "knitting wool yarn needle crochet sweater",
    "bicycle derailleur saddle pedal peloton helmet",
    "sushi wasabi nori chopsticks rice soy",
    "goalkeeper football boots penalty jersey pitch",
    "watercolor canvas easel pigment brush palette",
    "puppy leash kennel collar chew treats",
    "train locomotive railway station carriage signal",
    "vampire gothic haunted crypt midnight ghost",
    "surf wave longboard wax lagoon swell",
    "circuit soldering robot sensor servo microchip",
    "wedding bridal veil bouquet lace vows",
    "bread sourdough yeast oven crust flour",
    "pirate treasure cutlass parrot island cannon",
    "ballet tutu pointe pirouette studio dancer",
    "cactus desert mesa canyon lizard adobe",
)
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeo"]
FORMS = ["set", "pack", "kit", "box", "piece", "edition", "bundle", "item"]
STYLES = ["classic", "small", "large", "plain", "deluxe", "everyday", "compact", "original"]
CATEGORIES = 6
LEAVES = 4
BRANDS = 15


class SyntheticSettings(Settings):
    """The synthetic world: planted user groups, planted item semantics that are independent of category, price and brand."""

    num_users: int = Field(600, ge=10)
    num_items: int = Field(800, ge=10)
    num_groups: int = Field(8, ge=1, description="planted user groups; 1 means that there are none")
    tastes: Literal["shared", "own"] = Field(
        "shared",
        description="shared: users like topics, some of which others like too, groups or not | own: everyone likes items of their own, so that nobody's "
        "behaviour tells anything of anyone else's",
    )
    num_topics: int = Field(12, ge=2, description="planted item semantics, visible in titles only")
    topics_per_group: int = Field(2, ge=1, description="topics that all members of a group like")
    num_days: int = Field(120, ge=10)
    cold_item_frac: float = Field(0.2, ge=0, lt=1, description="items first shown in the test window")
    launch_frac: float = Field(0.5, gt=0, le=1, description="first share of the test window, by time, in which they are launched one by one")
    quiet_user_frac: float = Field(0.5, ge=0, le=1)
    sessions_per_user: float = Field(20.0, gt=0, description="mean over all users")
    impressions_per_session: int = Field(8, ge=1)
    drift: DriftSettings = DriftSettings()

    @model_validator(mode="after")
    def _shared_where_it_drifts(self) -> Self:
        if self.tastes == "own" and not self.drift.is_off:
            raise ValueError('tastes = "own" knows no topics, and drift moves themes between topics: set tastes = "shared", or leave out drift')
        return self


def build(settings: SyntheticSettings, split: SplitSettings, seed: int) -> RawLogs:
    """The whole world; `split` says where the test window begins, which is when cold items are launched.

    Raises:
        ValueError: a group cannot like `topics_per_group` of `num_topics` topics and leave one out.
    """
    if settings.topics_per_group + 1 >= settings.num_topics:
        raise ValueError(
            f"logs.synthetic.topics_per_group = {settings.topics_per_group} must be at most num_topics - 2 = {settings.num_topics - 2}: "
            "a user likes one topic beside the group's, and must dislike some. Raise num_topics."
        )
    rng = np.random.default_rng([seed, 0x5E7])
    words = _theme_words(settings.num_topics * settings.drift.themes_per_topic, rng)
    group_U = rng.permutation(np.arange(settings.num_users) % settings.num_groups)
    likes_UT = _tastes(settings, group_U, rng)
    theme_I = rng.permutation(np.arange(settings.num_items) % len(words))
    cold_I = rng.permutation(settings.num_items) < round(settings.cold_item_frac * settings.num_items)
    user_S, time_S = _sessions(settings, rng)
    drift = Drift.of(settings.drift, settings.num_topics, Windows.of(time_S, split), seed)
    launch_I = _launches(settings, split, cold_I, time_S, rng)
    appeal_I = np.exp(rng.normal(0, 0.25, settings.num_items))
    session_X, item_X = _impressions(settings, time_S, launch_I, cold_I, rng)
    time_X = time_S[session_X] + rng.integers(1, 30, len(session_X)) * 1_000_000
    user_X = user_S[session_X]
    shared = settings.tastes == "shared"
    liked_X = likes_UT[user_X, drift.topics(theme_I[item_X], time_X)] if shared else _own_likes(settings, seed)[user_X, item_X]
    clicked_X = rng.random(len(item_X)) < np.minimum(np.where(liked_X, CLICK_LIKED, CLICK_OTHER) * appeal_I[item_X], 0.95)
    bought_X = clicked_X & (rng.random(len(item_X)) < np.where(liked_X, BUY_LIKED, BUY_OTHER))
    click_time_X = time_X + rng.integers(5, 300, len(item_X)) * 1_000_000
    buy_time_X = click_time_X + rng.integers(1, 240, len(item_X)) * MINUTE_US
    price_I = np.round(np.exp(rng.normal(2.5, 0.8, settings.num_items)), 2)
    searched_S = np.flatnonzero(rng.random(len(time_S)) < SEARCH_FRAC)
    blocks: list[Block] = [
        ("search", user_S[searched_S], None, time_S[searched_S] - MINUTE_US // 2, searched_S),
        ("impression", user_S[session_X], item_X, time_X, session_X),
        ("click", user_S[session_X[clicked_X]], item_X[clicked_X], click_time_X[clicked_X], session_X[clicked_X]),
        ("purchase", user_S[session_X[bought_X]], item_X[bought_X], buy_time_X[bought_X], session_X[bought_X]),
    ]
    queries = _queries(user_S[searched_S], time_S[searched_S], likes_UT, drift, words, rng)
    user_ids, item_ids = _ids("u", settings.num_users), _ids("i", settings.num_items)
    events = _events(blocks, queries, price_I, user_ids, item_ids)
    truth = {
        "truth_users": pa.table({"user_id": user_ids, "user_group": pa.array(group_U.astype(np.int32))}),
        "truth_items": pa.table({"item_id": item_ids, "item_topic": pa.array(drift.topic_MH[0, theme_I].astype(np.int32)), "cold": pa.array(cold_I)}),
    }
    if not settings.drift.is_off:
        truth["truth_items"] = _with_themes(truth["truth_items"], theme_I, drift)
    return RawLogs(
        users=_users(user_ids, group_U, settings, rng),
        items=_items(item_ids, theme_I, price_I, launch_I, cold_I, words, rng),
        events=events,
        labels=Labels(exposure="impression", outcome="click", conversion="purchase"),
        negatives=Negatives(),
        categorical_attributes=("age_band", "region", "household"),
        numeric_attributes=("tenure_years",),
        rows_in=len(events),
        truth=truth,
    )


def _ids(prefix: str, count: int) -> pa.Array:
    return pa.array([f"{prefix}{row:0{len(str(count))}d}" for row in range(count)])


def _theme_words(num_themes: int, rng: np.random.Generator) -> list[list[str]]:
    """Six words for each theme: real ones for the first themes, made-up ones beyond."""
    words = [theme.split() for theme in TOPICS[:num_themes]]
    while len(words) < num_themes:
        words.append(["".join(rng.choice(SYLLABLES, 3)) for _ in range(6)])
    return words


def _tastes(settings: SyntheticSettings, group_U: Ints, rng: np.random.Generator) -> Bools:
    """Which topics each user likes [U, T]; everyone likes as many, so that no user or group clicks more than another by itself."""
    users, topics, shared = settings.num_users, settings.num_topics, settings.topics_per_group
    if settings.num_groups == 1:
        rank_UT = rng.random((users, topics)).argsort(1).argsort(1)
        return rank_UT < shared + 1
    # Groups walk through the topics in steps, so that their likes differ as much as the numbers allow.
    start_G = np.arange(settings.num_groups) * topics // settings.num_groups if settings.num_groups < topics else np.arange(settings.num_groups)
    order = rng.permutation(topics)
    likes = np.zeros((users, topics), bool)
    for step in range(shared):
        likes[np.arange(users), order[(start_G[group_U] + step * (1 + start_G[group_U] // topics)) % topics]] = True
    own = np.where(likes, np.inf, rng.random((users, topics)))
    missing = shared + 1 - likes.sum(1)
    rank = own.argsort(1).argsort(1)
    tastes: Bools = likes | (rank < missing[:, None])
    return tastes


def _own_likes(settings: SyntheticSettings, seed: int) -> Bools:
    """Which items each user likes [U, I], every pair drawn by itself, as many as with topics."""
    share = (settings.topics_per_group + 1) / settings.num_topics
    return np.random.default_rng([seed, 0x0D1]).random((settings.num_users, settings.num_items)) < share


def _sessions(settings: SyntheticSettings, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Users and times of the sessions, in time order."""
    quiet = rng.permutation(settings.num_users) < round(settings.quiet_user_frac * settings.num_users)
    share = np.where(quiet, QUIET_SHARE, 1.0)
    counts = np.maximum(rng.poisson(settings.sessions_per_user * share / share.mean()), 1)
    user = np.repeat(np.arange(settings.num_users), counts)
    day = rng.integers(0, settings.num_days, len(user))
    second = np.clip(rng.normal(16 * 3600, 3 * 3600, len(user)), 0, 86_399).astype(np.int64)
    time = START_US + day * DAY_US + second * 1_000_000 + MINUTE_US
    order = np.argsort(time, kind="stable")
    return user[order], time[order]


def _launches(settings: SyntheticSettings, split: SplitSettings, cold_I: Bools, time_S: Ints, rng: np.random.Generator) -> Ints:
    """When each item goes on sale: before the logs begin, or in the first share of the test window."""
    launch = np.full(settings.num_items, START_US - 365 * DAY_US, np.int64)
    if cold_I.any():
        windows = Windows.of(time_S, split)
        # Purchases trail the last session by hours and move the shares' boundary with them: a day's margin keeps the launches in the test window.
        earliest = windows.train_end + min(DAY_US, (windows.end - windows.train_end) // 10)
        launch[cold_I] = earliest + rng.integers(0, max(int((windows.end - earliest) * settings.launch_frac), 1), int(cold_I.sum()))
    return launch


def _impressions(settings: SyntheticSettings, time_S: Ints, launch_I: Ints, cold_I: Bools, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Sessions and items of the impressions: long-tailed for warm items, even for the launched cold ones, no item twice in a session."""
    warm = np.flatnonzero(~cold_I)
    weight = 1.0 / (np.arange(len(warm)) + 5.0) ** 0.8
    session = np.repeat(np.arange(len(time_S)), settings.impressions_per_session)
    item = warm[np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(len(session))).clip(max=len(warm) - 1)]
    cold = np.flatnonzero(cold_I)
    cold = cold[np.argsort(launch_I[cold])]
    launched = np.searchsorted(launch_I[cold], time_S[session], side="right")
    swap = (rng.random(len(session)) < COLD_SHARE) & (launched > 0)
    item[swap] = cold[(rng.random(int(swap.sum())) * launched[swap]).astype(np.int64)]
    _, first = np.unique(session * settings.num_items + item, return_index=True)
    first.sort()
    return session[first], item[first]


def _queries(user: Ints, time: Ints, likes_UT: Bools, drift: Drift, words: list[list[str]], rng: np.random.Generator) -> list[str]:
    """One query per search: two words of a theme that the user likes by then."""
    score = np.where(likes_UT[user], rng.random((len(user), likes_UT.shape[1])), -1.0)
    topic = score.argmax(1)
    first, second = rng.integers(0, 3, len(user)), rng.integers(3, 6, len(user))
    theme = topic
    if len(words) > likes_UT.shape[1] or len(drift.since_M) > 1:
        themes = np.arange(len(words))
        belongs = drift.topics(np.tile(themes, len(user)), np.repeat(time, len(words))).reshape(len(user), -1) == topic[:, None]
        theme = np.where(belongs, rng.random(belongs.shape), -1.0).argmax(1)
    return [f"{words[t][a]} {words[t][b]}" for t, a, b in zip(theme, first, second, strict=True)]


def _with_themes(items: pa.Table, theme_I: Ints, drift: Drift) -> pa.Table:
    """The items' truth with their themes, and their topics at all moments beside the moments: null is the beginning."""
    since = pa.array([None, *drift.since_M[1:].tolist()], pa.timestamp("us")).cast(schema.TIMESTAMP)
    topics = pa.FixedSizeListArray.from_arrays(pa.array(drift.topic_MH[:, theme_I].T.reshape(-1).astype(np.int32)), len(since))
    moments = pa.FixedSizeListArray.from_arrays(pa.concat_arrays([since] * len(theme_I)), len(since))
    return items.append_column("item_theme", pa.array(theme_I.astype(np.int32))).append_column("topics", topics).append_column("topics_since", moments)


def _events(blocks: list[Block], queries: list[str], price_I: Floats, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    """All kinds in one table, in time order; event ids are numbers in that order."""
    parts = []
    for kind, user, item, time, session in blocks:
        count = len(user)
        known = np.full(count, item is not None)
        number = np.zeros(count, np.int64) if item is None else item
        parts.append(
            pa.table(
                {
                    "user_id": user_ids.take(pa.array(user)),
                    "ts": pa.array(time).cast(pa.timestamp("us")).cast(schema.TIMESTAMP),
                    "kind": pa.repeat(kind, count),
                    "item_id": item_ids.take(pa.array(number, mask=~known)),
                    "query": pa.array(queries, pa.string()) if item is None else pa.nulls(count, pa.string()),
                    "price": pa.array(price_I[number], mask=~known),
                    "quantity": pa.array(np.ones(count), mask=np.full(count, kind != "purchase")),
                    "request_id": _ids("s", int(session.max(initial=0)) + 1).take(pa.array(session)),
                }
            )
        )
    table = pa.concat_tables(parts)
    table = table.take(np.argsort(table.column("ts").cast(pa.int64()).to_numpy(), kind="stable"))
    return table.append_column("event_id", _ids("e", len(table))).select(schema.EVENTS.names)


def _users(user_ids: pa.Array, group_U: Ints, settings: SyntheticSettings, rng: np.random.Generator) -> pa.Table:
    """Attributes: two follow the group for most users (where there are groups), two are noise; each is unknown for some."""
    count, grouped = settings.num_users, settings.num_groups > 1

    def column(names: list[str], offset: int, follow_frac: float, null_frac: float) -> pa.Array:
        follows = grouped & (rng.random(count) < follow_frac)
        place = np.where(follows, (group_U + offset) % len(names), rng.integers(0, len(names), count))
        return pa.array(np.array(names)[place], mask=rng.random(count) < null_frac)

    return pa.table(
        {
            "user_id": user_ids,
            "age_band": column(["18-24", "25-34", "35-44", "45-54", "55-64", "65+"], 0, 0.7, 0.4),
            "household": column(["single", "couple", "family", "shared flat", "retired couple"], 2, 0.7, 0.4),
            "region": column(["north", "south", "east", "west"], 0, 0.0, 0.3),
            "tenure_years": pa.array(np.round(rng.gamma(2.0, 2.0, count), 1), mask=rng.random(count) < 0.3),
        }
    )


def _items(item_ids: pa.Array, theme_I: Ints, price_I: Floats, launch_I: Ints, cold_I: Bools, words: list[list[str]], rng: np.random.Generator) -> pa.Table:
    """Titles speak of the theme in three of its six words; category and brand say nothing about it."""
    count = len(theme_I)
    picked = rng.random((count, 6)).argsort(1)[:, :3]
    style, form = rng.integers(0, len(STYLES), count), rng.integers(0, len(FORMS), count)
    titles = [
        f"{STYLES[s]} {' '.join(words[theme][place] for place in places)} {FORMS[f]}" for s, f, theme, places in zip(style, form, theme_I, picked, strict=True)
    ]
    root, leaf, brand = rng.integers(0, CATEGORIES, count), rng.integers(0, LEAVES, count), rng.integers(0, BRANDS, count)
    return pa.table(
        {
            "item_id": item_ids,
            "title": pa.array(titles),
            "category": pa.array([[f"Aisle {r + 1}", f"Shelf {r + 1}-{lf + 1}"] for r, lf in zip(root, leaf, strict=True)]),
            "brand": pa.array([f"Maker {number + 1}" for number in brand]),
            "price": pa.array(price_I),
            "first_seen": pa.array(np.where(cold_I, launch_I, 0), mask=~cold_I).cast(pa.timestamp("us")).cast(schema.TIMESTAMP),
        }
    )
