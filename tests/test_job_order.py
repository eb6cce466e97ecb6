"""Job orders: refused as the command would refuse them, quoted whatever is in them, into the store that the console shows; what they would wait for."""

import shlex
import subprocess
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from longtail.config import load
from longtail.config_text import as_overrides, as_toml
from pipelines import full
from pipelines.stage import arguments, config_from
from serve_apps.console.job_order import CONFIGS, MODULES, STAGE_MODULES, Checked, JobOrder, Room, checked, config_names, needs, publishing, waits

URI = "/data/the store"
NASTY = 'a\'; touch /tmp/owned; echo "$(id)" `id` \\ #'


def config_of(order: Checked, monkeypatch: pytest.MonkeyPatch) -> object:
    """What the command makes of an order's arguments."""
    shown = [argument for argument in order.arguments if argument != "--build"]
    monkeypatch.setattr("sys.argv", ["command", *shown])
    return config_from(arguments("a command"))


def test_an_order_writes_to_the_store_that_the_console_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    for order in (JobOrder(config="test.toml"), JobOrder(toml='[run]\nuri = "runs/own"\nseed = 9\n'), JobOrder()):
        found = checked(order, URI)
        assert found.config.run.uri == URI
        assert config_of(found, monkeypatch) == found.config
    assert checked(JobOrder(toml="[run]\nseed = 9\n"), URI).config.run.seed == 9
    with pytest.raises(ValueError, match=r"run.uri=/elsewhere: a job of this console writes to the store .* Leave run\.uri out"):
        checked(JobOrder(settings=["run.uri=/elsewhere"]), URI)


@pytest.mark.parametrize("name", config_names())
def test_every_config_says_the_same_as_a_pasted_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(JobOrder(toml=(CONFIGS / name).read_text(), settings=["run.name=pasted"]), URI)
    assert "--config" not in found.arguments
    assert config_of(found, monkeypatch) == found.config == checked(JobOrder(config=name, settings=["run.name=pasted"]), URI).config


def test_what_is_wrong_is_said_before_anything_starts() -> None:
    for order, said in (
        (JobOrder(module="os"), "module = 'os' is none that the console starts"),
        (JobOrder(module="serve_apps.up"), "none that the console starts"),
        (JobOrder(config="../../etc/passwd"), r"is no file of pipelines/configs. There are .*demo\.toml"),
        (JobOrder(config="test.toml", toml="[run]\n"), "choose a file or paste a text, not both"),
        (JobOrder(toml="[run\n"), "the pasted text is not valid TOML"),
        (JobOrder(toml="[sweep]\nnum_trial = 3\n"), r"(?s)the pasted text: 1 setting.*sweep\.num_trial.*Did you mean num_trials"),
        (JobOrder(settings=["sweep.num_trials=0"]), r"sweep\.num_trials = 0"),
        (JobOrder(settings=["sweep.num_trials"]), r"expected a\.b=value"),
    ):
        with pytest.raises(ValueError, match=said):
            checked(order, URI)


def test_no_argument_reaches_the_shell_as_a_command(tmp_path: Path) -> None:
    order = checked(JobOrder(module="pipelines.logs", settings=[f"run.name={NASTY}"]), URI)
    folder = tmp_path / "it's; here"
    folder.mkdir()
    said = subprocess.run(order.entrypoint("/bin/echo", str(folder)), shell=True, capture_output=True, text=True, check=True).stdout
    assert said.rstrip("\n") == " ".join(["-m", *order.module.split(), *order.arguments])
    assert shlex.split(order.entrypoint("python", None)) == ["python", "-m", "pipelines.logs", *order.arguments]


def test_sweeps_are_the_same_whatever_way_they_were_asked_for() -> None:
    text = (CONFIGS / "test.toml").read_text()
    same = checked(JobOrder(config="test.toml"), URI).same
    assert same is not None
    assert checked(JobOrder(toml=text, settings=["sweep.max_concurrent=2"]), "/other").same == same
    assert checked(JobOrder(toml=text, settings=["sweep.num_trials=3"]), URI).same != same
    assert checked(JobOrder(module="pipelines.logs", config="test.toml"), URI).same is None


def test_the_best_config_is_published_from_a_disk_by_its_path_and_from_elsewhere_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, ["codes.user.codebook_size=6", 'sweep.space={"train.learning_rate"={low=0.1, high=0.2}}'])
    (tmp_path / "best.toml").write_text("# of a sweep\n" + as_toml(config))
    here = publishing(pafs.LocalFileSystem(), str(tmp_path / "best.toml"), URI)
    there = publishing(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "best.toml", URI)
    assert here.arguments[:2] == ("--config", str(tmp_path / "best.toml"))
    assert "--config" not in there.arguments
    assert here.arguments[-1] == there.arguments[-1] == "--build"
    for order in (here, there):
        assert order.module == "pipelines.publish"
        assert config_of(order, monkeypatch) == order.config == config.model_copy(update={"run": config.run.model_copy(update={"uri": URI})})


def test_overrides_keep_keys_with_dots_together() -> None:
    raw = {"sweep": {"space": {"train.epochs": [1, 2]}, "num_trials": 3}, "run": {}, "logs": {"synthetic": {"num_users": 5}}}
    assert as_overrides(raw) == ['sweep.space={"train.epochs" = [1, 2]}', "sweep.num_trials=3", "run={}", "logs.synthetic.num_users=5"]


def room(free: float, total: float = 2.0) -> Room:
    return Room({"CPU": total, "GPU": 0.0}, {"CPU": free, "GPU": 0.0})


def test_the_form_says_what_a_job_would_wait_for() -> None:
    sweep = checked(JobOrder(config="test.toml"), URI)
    assert needs(sweep) == {"CPU": 1.0, "GPU": 0.0}
    assert waits(sweep, room(1.5)) is None
    assert "needs 1 CPU at a time and 0.6 of 2 are free now: it will wait until" in str(waits(sweep, room(0.6)))
    two = checked(JobOrder(config="test.toml", settings=["sweep.max_concurrent=2"]), URI)
    assert "enough for 1 at a time: the others wait" in str(waits(two, room(1.5)))
    wide = checked(JobOrder(config="test.toml", settings=["train.compute.num_actors=4"]), URI)
    assert "on one of fixed size for ever" in str(waits(wide, room(2.0)))
    gpu = checked(JobOrder(module="pipelines.train", settings=["train.compute.num_gpus=1"]), URI)
    assert "needs 1 GPU at a time and the cluster has 0" in str(waits(gpu, room(2.0)))
    assert waits(checked(JobOrder(module="pipelines.groups"), URI), room(1.0)) is None


def test_the_modules_are_those_of_the_whole_line() -> None:
    assert set(STAGE_MODULES) == {stage.command for stage in full.stages(load(None))}
    assert all((CONFIGS.parent.parent / f"{name.replace('.', '/')}.py").exists() for name in MODULES)
