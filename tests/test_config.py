"""Config files and overrides: what is taken, what is refused, and in which words."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from longtail.config import Config, load
from longtail.settings import Compute, Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_without_a_file_everything_has_its_default() -> None:
    assert load(None) == Config()


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, '[run]\nseed = 1\nname = "a"\n[codes.user]\ncodebook_size = 4\n')
    config = load(path, ["run.seed=5", "codes.user.num_stages=3"])
    assert (config.run.seed, config.run.name) == (5, "a")
    assert (config.codes.user.codebook_size, config.codes.user.num_stages) == (4, 3)
    assert config.codes.item == Config().codes.item


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("run.name=plain words", "run", "name", "plain words"),
        ('run.name="quoted"', "run", "name", "quoted"),
        ("run.name=a=b", "run", "name", "a=b"),
        ("run.uri=s3://bucket/prefix", "run", "uri", "s3://bucket/prefix"),
        (" run.seed = 11", "run", "seed", 11),
        ("train.learning_rate=0.25", "train", "learning_rate", 0.25),
        ("cluster.dashboard=false", "cluster", "dashboard", False),
        ('train.rankers=["base", "saviorrec"]', "train", "rankers", ("base", "saviorrec")),
    ],
)
def test_override_forms(override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(load(None, [override]), section), field) == value


def test_a_section_given_in_part_keeps_the_rest_of_its_default(tmp_path: Path) -> None:
    class Codebook(Settings):
        stages: int = 1
        width: int = 2
        compute: Compute = Compute()

    class Codes(Settings):
        item: Codebook = Codebook(stages=3, width=32, compute=Compute(num_actors=2, num_cpus=0.5))

    codes = Codes.model_validate({"item": {"width": 8, "compute": {"num_actors": 4}}})
    assert codes.item == Codebook(stages=3, width=8, compute=Compute(num_actors=4, num_cpus=0.5))
    assert Codes.model_validate({"item": Codebook()}).item == Codebook()
    assert load(write(tmp_path, "[codes.item]\niterations = 5\n")).codes.item == Config().codes.item.model_copy(update={"iterations": 5})


def test_last_override_wins() -> None:
    assert load(None, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.seed"], r"--set run\.seed: expected a\.b=value"),
        (["run.sede=1"], r"run\.sede = 1: \[run\] has no such key\. Did you mean seed"),
        (["training.epochs=1"], r"training = .*: the config has no such key\. Did you mean train\?"),
        (["run.seed=many"], r"run\.seed = 'many': .*valid integer"),
        (["codes.user.codebook_size=1"], r"codes\.user\.codebook_size = 1: .*greater than or equal to 2"),
        (["run.seed=-1"], r"run\.seed = -1: .*greater than or equal to 0"),
        (["run.uri="], r"run\.uri = '': .*at least 1 character"),
        (["train.rankers=[]"], r"train\.rankers = \[\]: .*at least 1 item"),
        (['train.rankers=["base", "base"]'], r"train\.rankers = .*a ranker is named twice"),
        (["evaluate.baseline=other"], r"evaluate\.baseline = 'other'"),
        (["profiles.windows_days=[30, 7, 365]"], r"profiles\.windows_days = .*must grow"),
        (["profiles.windows_days=[-1, 7, 365]"], r"profiles\.windows_days\.0 = -1"),
        (['profiles.snapshots=["soon"]'], r"profiles\.snapshots = .*'soon' is neither"),
        (["rankers.base.hidden_dims=[0]"], r"rankers\.base\.hidden_dims\.0 = 0"),
        (["logs.censored_days=inf"], r"logs\.censored_days = inf"),
        (['logs.categorical_attributes=["city", "city"]'], r"name each attribute once"),
        (["run.seed=1", "run.seed.low=2"], r"--set run\.seed\.low=2: 'seed' is a value, not a section"),
    ],
)
def test_refusals_name_the_setting(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(None, overrides)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "[run]\nsede = 1\n[train]\nepochs = 0\n")
    with pytest.raises(ValueError, match="2 setting") as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "run.sede" in text
    assert "train.epochs" in text


def test_a_refused_setting_that_was_set_over_the_file_is_told_from_the_files_own(tmp_path: Path) -> None:
    path = write(tmp_path, "[peers]\nprior_users = -1\n")
    with pytest.raises(ValueError, match="2 setting") as caught:
        load(path, ["train.epochs=0"])
    said = {line.split()[0]: line.endswith(" (set over the file)") for line in str(caught.value).splitlines()[1:]}
    assert said == {"peers.prior_users": False, "train.epochs": True}


def test_missing_file_and_broken_toml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file.*pipelines/configs/"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match="not valid TOML"):
        load(write(tmp_path, "[run\n"))


def test_a_file_that_is_no_utf8_and_a_folder_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes('[run]\nname = "Möbel"\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml is not UTF-8"):
        load(path)
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load(tmp_path)
    path.write_bytes('[run]\nname = "Möbel"\n'.encode("utf-8-sig"))
    assert load(path).run.name == "Möbel"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().run.seed = 3  # type: ignore[misc]


def test_key_fields_leave_out_where_a_stage_runs() -> None:
    class Inner(Settings):
        width: int = 1
        compute: Compute = Compute()

    class Outer(Settings):
        inner: Inner = Inner()
        compute: Compute = Compute()
        label: str = "a"

    assert Outer().key_fields() == {"inner": {"width": 1}, "label": "a"}
    other = Outer(compute=Compute(num_actors=8), inner=Inner(compute=Compute(batch_size=1)))
    assert other != Outer()
    assert other.key_fields() == Outer().key_fields()


def test_a_sections_own_rule_is_told_without_printing_the_section() -> None:
    with pytest.raises(ValueError, match="name each once") as told:
        load(None, ['user_spaces.spaces=["titles", "titles"]'])
    assert str(told.value).splitlines()[1] == "  user_spaces: spaces = ['titles', 'titles']: name each once"


@pytest.mark.parametrize(
    "setting", ["peers.prior_users=inf", "collaborative.ease_l2=inf", "rankers.choirrec.distill_weight=inf", "train.final_learning_rate=nan"]
)
def test_what_is_not_finite_is_no_value(setting: str) -> None:
    with pytest.raises(ValueError, match=setting.partition("=")[0].replace(".", r"\.") + " = (inf|nan): Input should be a finite number"):
        load(None, [setting])


@pytest.mark.parametrize(
    "override",
    ["tracking.uri=https://me:hunter2@host/x", "run.uri=s3://AK%3Ahunter2@b/p", "run.uri=s3://b/p?p%61ssword=hunter2", "s3://AK:hunter2@b"],
)
def test_a_refusal_does_not_repeat_a_secret(override: str) -> None:
    with pytest.raises(ValueError, match=r"uri|--set") as refused:
        load(None, [override])
    assert "hunter2" not in str(refused.value)


def test_a_file_that_python_cannot_read_as_toml_is_named(tmp_path: Path) -> None:
    for name, text in (("long.toml", "run.seed = " + "9" * 5000), ("deep.toml", "x = " + "[" * 5000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"--config .*{name}: not valid TOML"):
            load(tmp_path / name)


def test_a_space_without_quotes_and_an_empty_one_say_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[sweep.space]\ntrain.epochs = [1, 2]\n")
    with pytest.raises(ValueError, match=r'train is a section: write a setting as one quoted key, such as "train\.epochs"'):
        load(tmp_path / "c.toml")
    with pytest.raises(ValueError, match="space is empty"):
        load(None, ["sweep.space={}"])
