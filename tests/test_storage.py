"""Storage by URI: artifacts on an S3-compatible server and through fsspec are there as a whole or not at all, also when several attempts commit at once."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from longtail.artifacts import Artifact, Draft, Store
from longtail.sweep_results import Journal, Trial
from tests.s3_server import BUCKET, s3_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    *(pytest.mark.filterwarnings(f"ignore::DeprecationWarning:{name}") for name in ("botocore", "moto", "werkzeug")),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as end:
        yield end


@pytest.fixture(params=["s3", "fsspec"])
def store(request: pytest.FixtureRequest, server: str) -> Store:
    prefix = request.node.name.replace("[", "-").replace("]", "")
    uri = f"s3://{BUCKET}/{prefix}?{server}" if request.param == "s3" else f"memory://{prefix}"
    return Store.open(uri)


def written(draft: Draft, number: int) -> Draft:
    draft.write("rows", pa.table({"number": [number] * 1000}))
    draft.write_json("told.json", {"number": number})
    return draft


def commit(draft: Draft) -> Artifact:
    return draft.commit(config={}, inputs={}, seed=0, rows_in=1000, rows_out=1000, dropped={}, info={})


def number_of(artifact: Artifact) -> int:
    """What a reader sees; fails where an artifact is there in part or mixes two attempts."""
    numbers = set(artifact.read("rows").column("number").to_pylist())
    assert len(numbers) == 1
    assert artifact.read_json("told.json") == {"number": min(numbers)}
    return int(min(numbers))


def test_uris_name_file_systems(server: str) -> None:
    assert isinstance(Store.open(f"s3://{BUCKET}/x?{server}").fs, pafs.S3FileSystem)
    assert Store.open(f"s3://{BUCKET}/x/?{server}").root == f"{BUCKET}/x"
    assert Store.open("memory://somewhere").fs.type_name == "py::fsspec+memory"


def test_what_is_no_file_system_is_told_with_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"run\.uri = 'nosuch://x' names no file system that pyarrow or fsspec knows"):
        Store.open("nosuch://x")
    with pytest.raises(ValueError, match=r"install the package that gives fsspec dropbox://"):
        Store.open("dropbox://x")


def test_a_secret_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="holds credentials") as raised:
        Store.open("s3://AKIAEXAMPLE:hunter2@bucket/x")
    assert "hunter2" not in str(raised.value)
    assert "AKIAEXAMPLE" not in str(raised.value)


def test_an_artifact_is_seen_when_its_manifest_is(store: Store) -> None:
    draft = written(store.create("codes", "k"), 1)
    assert store.find("codes", "k") is None, "all is written but the manifest"
    found = commit(draft)
    seen = store.find("codes", "k")
    assert seen is not None
    assert (number_of(seen), seen.content_hash) == (1, found.content_hash)


def test_what_was_interrupted_is_never_seen_and_cleared_away(store: Store) -> None:
    draft = store.create("codes", "k")
    written(draft, 1)
    stream = store.fs.open_output_stream(draft.path("half.bin"))
    stream.write(b"x" * 100)  # and never closed: the process died
    assert store.find("codes", "k") is None
    assert store.clear_interrupted("codes", "k", older_than_s=-5) == 1
    assert not [one for one in store.fs.get_file_info(pafs.FileSelector(f"{store.root}/codes/k", recursive=True)) if one.type == pafs.FileType.File]
    assert number_of(commit(written(store.create("codes", "k"), 2))) == 2


def test_a_manifest_that_was_cut_short_is_named(store: Store) -> None:
    commit(written(store.create("codes", "k"), 1))
    with store.fs.open_output_stream(f"{store.root}/codes/k/manifest.json") as stream:
        stream.write(b'{"data": "20')
    with pytest.raises(ValueError, match=r"manifest\.json is cut short or no manifest"):
        store.find("codes", "k")


def test_attempts_that_commit_at_once_all_end_with_a_whole_artifact_and_so_does_every_reader(server: str) -> None:
    store = Store.open(f"s3://{BUCKET}/at-once?{server}")
    drafts = [written(store.create("codes", "k"), number) for number in range(6)]
    barrier, seen, done = threading.Barrier(len(drafts)), set(), threading.Event()

    def at_once(draft: Draft) -> int:
        barrier.wait(timeout=60)
        return number_of(commit(draft))

    def look() -> None:
        while not done.is_set():
            found = store.find("codes", "k")
            if found is not None:
                seen.add(number_of(found))

    with ThreadPoolExecutor(len(drafts) + 1) as threads:
        reader = threads.submit(look)
        try:
            committed = list(threads.map(at_once, drafts))
        finally:
            done.set()  # else an attempt that fails would leave the reader looking for ever
        reader.result()
    last = store.find("codes", "k")
    assert last is not None
    assert set(committed) | seen <= set(range(6))
    assert number_of(last) in committed, "what stands in the end is what some attempt was told"
    assert number_of(commit(written(store.create("codes", "k"), 99))) == number_of(last), "who comes later takes what is there"


def test_a_sweeps_journal_holds_the_last_state_on_an_object_store(store: Store) -> None:
    journal = Journal.of(store, "key")
    for state in ("begun", "finished"):
        journal.write(Trial(number=0, point={"train.epochs": 3}, state=state))  # type: ignore[arg-type]  # one of its states
    assert [(one.number, one.state) for one in journal.read()] == [(0, "finished")]
    (entry,) = store.fs.get_file_info(pafs.FileSelector(journal.folder))
    with store.fs.open_input_stream(entry.path) as stream:
        assert json.loads(stream.read())["point"] == {"train.epochs": 3}
