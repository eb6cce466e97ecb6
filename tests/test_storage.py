"""Storage by URI: what names a file system, that credentials are refused, and artifacts on an S3-compatible server and through fsspec."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from longtail.artifacts import Artifact, Draft, Store
from longtail.config import load
from longtail.images import open_image
from longtail.logs import LogsSettings, build_logs, fingerprint
from longtail.profile_cache import Answer, ProfileCache
from longtail.questions import Question, StatedItem
from longtail.storage import above, below, local_folder, open_place, refuse_secrets, without_secrets, write_whole
from longtail.sweep_journal import Journal
from longtail.sweep_results import Trial
from pipelines import code_continuity
from pipelines.cluster import ROOT
from serve_apps.ranking import served_run
from tests import small_run, tables_world
from tests.s3_server import BUCKET, s3_server

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as end:
        yield end


@pytest.fixture(params=["s3", "fsspec"])
def store(request: pytest.FixtureRequest, server: str) -> Store:
    prefix = request.node.name.replace("[", "-").replace("]", "")
    uri = f"s3://{BUCKET}/{prefix}?{server}" if request.param == "s3" else f"memory://{prefix}"
    return replace(Store.open(uri), settle_s=0.3)


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


def files(store: Store, folder: str) -> set[str]:
    found = store.fs.get_file_info(pafs.FileSelector(f"{store.root}/{folder}", recursive=True))
    return {entry.path.partition(f"{folder}/")[2] for entry in found if entry.type == pafs.FileType.File}


def test_uris_name_file_systems(server: str, tmp_path: Path) -> None:
    assert isinstance(Store.open(f"s3://{BUCKET}/x?{server}").fs, pafs.S3FileSystem)
    assert Store.open(f"s3://{BUCKET}/x/?{server}").root == f"{BUCKET}/x"
    assert isinstance(Store.open("gs://anonymous@bucket/x").fs, pafs.GcsFileSystem)
    assert isinstance(Store.open("abfs://container@account.dfs.core.windows.net/x").fs, pafs.AzureFileSystem)
    assert Store.open("memory://somewhere").fs.type_name == "py::fsspec+memory"
    assert isinstance(Store.open(tmp_path.as_uri()).fs, pafs.LocalFileSystem)
    assert open_place("run.uri", "a/b")[1] == (Path.cwd() / "a/b").as_posix()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nosuch://x", r"run\.uri = 'nosuch://x' names no file system that pyarrow or fsspec knows .* Use a local path, s3://"),
        ("dropbox://x", r"run\.uri = 'dropbox://x': the package that gives fsspec dropbox:// is not installed .*dropboxdrivefs.* Install it on every node"),
        ("s3://bucket/x?region=us-east-1&no_such_option=1", r"cannot be opened: .*'no_such_option'"),
    ],
)
def test_what_cannot_be_opened_is_told_with_what_is_missing(uri: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Store.open(uri)


SECRETS = (
    "s3://AKIAEXAMPLE:hunter2@bucket/x",
    "s3://AKIAEXAMPLE:hunter2/with/slashes@bucket/x",
    "s3://bucket/x?secret_key=hunter2",
    "s3://AK%3Ahunter2@bucket/x",
    "s3://bucket/x?p%61ssword=hunter2",
    "s3://bucket/x#secret_key=hunter2",
    "gs://bucket/x?private_key=hunter2",
    "azure://x?connection_string=AccountKey=hunter2",
    "https://hunter2@host/x",
    "https://host/x?key=hunter2",
    "hf://hunter2@data",
    "abfs://container:hunter2@account.dfs.core.windows.net/x",
    "abfs://container@account/x?sas_token=hunter2",
    "sftp://me:hunter2@host:22/x",
)
NO_SECRETS = (
    "s3://bucket/a:b@c",
    "s3://b/x?endpoint_override=h:1&scheme=http",
    "hdfs://host:9000/a@b",
    "gs://anonymous@bucket/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "sftp://me@host:22/x",
    "a:b@c",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    said = []
    for attempt in (
        lambda: Store.open(uri),
        lambda: load(None, [f"run.uri={json.dumps(uri)}"]),
        lambda: load(None, [f"codes.item.previous={json.dumps(uri)}"]),
        lambda: load(None, ["logs.source=tables", f"logs.tables={{users = {json.dumps(uri)}, items = 'i', events = 'e'}}"]),
        lambda: LogsSettings.model_validate({"source": "tables", "tables": {"users": uri, "items": "i", "events": "e"}}),
    ):
        with pytest.raises(ValueError, match="holds credentials") as raised:
            attempt()
        said += [str(raised.value), str(raised.value.__cause__)]  # a traceback shows both
    said.append(without_secrets(f"run.uri = '{uri}' is no good"))
    assert not [one for one in said if "hunter2" in one]
    assert said[-1].endswith("is no good")


@pytest.mark.parametrize("uri", NO_SECRETS)
def test_what_only_looks_like_credentials_is_left_alone(uri: str) -> None:
    assert refuse_secrets(uri) == uri
    assert without_secrets(uri) == uri


def test_places_below_and_above_keep_a_uris_options() -> None:
    assert below("s3://b/p?region=x", "set", "key") == "s3://b/p/set/key?region=x"
    assert below("runs/p/", "set") == "runs/p/set"
    assert above("s3://b/p/key?region=x") == ("s3://b/p?region=x", "key")
    assert above("/runs/p/key/") == ("/runs/p", "key")
    assert local_folder("study.results", "results") == Path("results")
    with pytest.raises(ValueError, match=r"study\.results = 's3://b/p' must be a folder of this machine"):
        local_folder("study.results", "s3://b/p")


def test_an_artifact_is_seen_when_its_manifest_is(store: Store) -> None:
    draft = written(store.create("codes", "k"), 1)
    assert store.find("codes", "k") is None, "all is written but the manifest"
    found = commit(draft)
    seen = store.find("codes", "k")
    assert seen is not None
    assert (number_of(seen), seen.content_hash) == (1, found.content_hash)
    assert files(store, "codes/k") == {"manifest.json", f"{draft.attempt}/rows.parquet", f"{draft.attempt}/told.json"}


def test_what_was_interrupted_is_never_seen_and_cleared_away(store: Store) -> None:
    draft = store.create("codes", "k")
    written(draft, 1)
    stream = store.fs.open_output_stream(draft.path("half.bin"))
    stream.write(b"x" * 100)  # and never closed: the process died
    assert store.find("codes", "k") is None
    assert store.clear_interrupted("codes", "k", older_than_s=3600) == 0, "it may still be running"
    assert store.clear_interrupted("codes", "k", older_than_s=-5) == 1
    assert files(store, "codes/k") == set()
    assert number_of(commit(written(store.create("codes", "k"), 2))) == 2


def test_an_upload_in_parts_that_breaks_off_leaves_nothing(server: str) -> None:
    """Of more than one part a file is not there before it is closed, and never when its process died in between."""
    store = Store.open(f"s3://{BUCKET}/parts?{server}")
    with store.fs.open_output_stream(f"{store.root}/whole.bin") as stream:
        stream.write(b"x" * (12 << 20))
        assert store.fs.get_file_info(f"{store.root}/whole.bin").type == pafs.FileType.NotFound
    assert store.fs.get_file_info(f"{store.root}/whole.bin").size == 12 << 20
    program = (
        "import os, sys; from longtail.artifacts import Store\n"
        "store = Store.open(sys.argv[1]); stream = store.fs.open_output_stream(f'{store.root}/killed.bin')\n"
        "stream.write(b'x' * (12 << 20)); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, store.uri], env=environment()).returncode == 9
    assert store.fs.get_file_info(f"{store.root}/killed.bin").type == pafs.FileType.NotFound


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}


def test_a_manifest_that_was_cut_short_is_named(store: Store) -> None:
    commit(written(store.create("codes", "k"), 1))
    write_whole(store.fs, f"{store.root}/codes/k/manifest.json", b'{"data": "20')
    with pytest.raises(ValueError, match=r"manifest\.json is cut short or no manifest"):
        store.find("codes", "k")


def test_attempts_that_commit_at_once_agree_and_so_does_every_reader(server: str) -> None:
    """The rule itself is played through in tests/test_attempts.py; here it runs on a server, each attempt a thread with connections of its own."""
    uri = f"s3://{BUCKET}/at-once?{server}"
    stores = [replace(Store.open(uri), settle_s=2.0) for _ in range(6)]
    drafts = [written(one.create("codes", "k"), number) for number, one in enumerate(stores)]
    barrier, seen, done = threading.Barrier(len(drafts)), set(), threading.Event()

    def at_once(draft: Draft) -> int:
        barrier.wait(timeout=60)
        return number_of(commit(draft))

    def look() -> None:
        store = Store.open(uri)
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
    last = stores[0].find("codes", "k")
    assert last is not None
    assert set(committed) == seen == {number_of(last)}
    assert number_of(commit(written(stores[0].create("codes", "k"), 99))) == number_of(last), "who comes later takes what is there"
    names = {name.partition("/")[0] for name in files(stores[0], "codes/k")}
    assert {name for name in names if "." in name} <= {"manifest.json", "claim.json"}


PROCESS = """
import sys, time
from dataclasses import replace
import pyarrow as pa
from longtail.artifacts import Store
store = replace(Store.open(sys.argv[1]), settle_s=2.0)
draft = store.create("codes", "k")
draft.write("rows", pa.table({"number": [int(sys.argv[2])] * 1000}))
draft.write_json("told.json", {"number": int(sys.argv[2])})
print("ready", flush=True)
sys.stdin.readline()
print(draft.commit(config={}, inputs={}, seed=0, rows_in=1, rows_out=1, dropped={}, info={}).manifest["data"], flush=True)
"""


def test_processes_that_commit_at_once_agree(server: str) -> None:
    uri = f"s3://{BUCKET}/processes?{server}"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", PROCESS, uri, str(number)], env=environment(), **pipe) for number in range(3)]  # type: ignore[call-overload]
    try:
        assert [one.stdout.readline() for one in started] == ["ready\n"] * 3
        for one in started:
            one.stdin.write("go\n")
            one.stdin.flush()
        told = {one.communicate(timeout=60)[0].strip() for one in started}
    finally:
        for one in started:
            one.kill()
            one.wait()
    found = Store.open(uri).find("codes", "k")
    assert found is not None
    assert told == {found.manifest["data"]}
    assert number_of(found) in range(3)


def test_answers_of_the_language_model_are_kept(store: Store) -> None:
    cache = ProfileCache(store.uri, "engine")
    cache.add({"a": Answer("said", 3, 2)})
    cache.add({"b": Answer("said too", 4, 1)})
    assert ProfileCache(store.uri, "engine").find(["a", "b", "c"]) == {"a": Answer("said", 3, 2), "b": Answer("said too", 4, 1)}


def test_input_tables_are_read(store: Store, tmp_path: Path) -> None:
    """Files and folders, with the same content as from a disk, under a fingerprint of their bytes."""
    here = tables_world.write(tables_world.shop(), tmp_path)
    there = {}
    for name, path in here.items():
        folder = f"{store.root}/{name}.parquet" if name != "events" else f"{store.root}/events/part-0.parquet"
        store.fs.create_dir(folder.rsplit("/", 1)[0], recursive=True)
        write_whole(store.fs, folder, Path(path).read_bytes())
        there[name] = below(store.uri, f"{name}.parquet" if name != "events" else "events")
    settings = [LogsSettings.model_validate({"source": "tables", "tables": paths, "categorical_attributes": ["city"]}) for paths in (here, there)]
    local, remote = (build_logs(one, seed=5) for one in settings)
    assert local.tables.keys() == remote.tables.keys()
    assert all(local.tables[name].equals(remote.tables[name]) for name in local.tables)
    assert len({fingerprint(one) for one in settings}) == 1
    with pytest.raises(ValueError, match=r"logs\.tables\.items = .*nothing is there"):
        fingerprint(LogsSettings.model_validate({"source": "tables", "tables": {**there, "items": below(store.uri, "nowhere.parquet")}}))


def test_pictures_are_read_and_not_fetched_from_the_web(store: Store, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    store.fs.create_dir(store.root, recursive=True)
    write_whole(store.fs, f"{store.root}/red.png", (tmp_path / "red.png").read_bytes())
    assert open_image(None, below(store.uri, "red.png")).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="not fetched from the web"):
        open_image(None, "https://example.com/red.png")


def test_an_earlier_codebook_is_found_by_its_uri(store: Store) -> None:
    earlier = commit(written(store.create("item_codes", "k"), 1))
    for named in (below(store.uri, "item_codes", "k"), "k"):
        config = load(None, [f"run.uri={json.dumps(store.uri)}", f"codes.item.previous={json.dumps(named)}"])
        assert code_continuity.fingerprint(config) == earlier.content_hash
    with pytest.raises(ValueError, match="there is no finished item_codes artifact other under"):
        code_continuity.find(load(None, [f"codes.item.previous={json.dumps(below(store.uri, 'item_codes', 'other'))}"]))


def test_a_run_is_served_from_a_uri(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints and codebooks are copied to this machine, everything else is read where it lies."""
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    config = small_run.publish(tmp_path / "run")
    store.fs.create_dir(store.root, recursive=True)
    pafs.copy_files(str(tmp_path / "run"), store.root, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=store.fs)
    here, there = (served_run(config, one).open().request_ranker() for one in (Store.open(config.run.uri), store))
    question = Question("a", tuple(StatedItem(item) for item in ("book", "milk", "tea")), "choirrec")
    assert [item.scores for item in there.rank(question).items] == [item.scores for item in here.rank(question).items]
    assert served_run(config, store).open().encoder().item_codebook_SKD is not None
    assert list((tmp_path / "cache" / "artifacts").iterdir())


def test_a_sweeps_journal_holds_the_last_state_on_an_object_store(store: Store) -> None:
    journal = Journal.of(store, "key")
    for state in ("begun", "finished"):
        journal.write(Trial(number=0, point={"train.epochs": 3}, state=state))  # type: ignore[arg-type]  # one of its states
    assert [(one.number, one.state) for one in journal.read()] == [(0, "finished")]
    (entry,) = store.fs.get_file_info(pafs.FileSelector(journal.folder))
    with store.fs.open_input_stream(entry.path) as stream:
        assert json.loads(stream.read())["point"] == {"train.epochs": 3}
