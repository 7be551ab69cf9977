"""Every wrong setting is one line that names it and says what is right, from flags, files and Python alike."""

import argparse
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import pytest
import torch
import yaml

import dlcourse
from dlcourse import topics
from dlcourse.doctor.topic import check_topic
from dlcourse.errors import SettingsError, suggestion
from dlcourse.evaluation import baselines
from dlcourse.experiment import train
from dlcourse.export.predict import predict
from dlcourse.reporting.result import Result
from dlcourse.settings import PositiveFloat, PositiveInt, Settings, SettingsParser, described
from dlcourse.topics import Topic
from dlcourse.training.overfit_batch import overfit
from dlcourse.training.request import LIGHTNINGS, resolve, settings_parser
from dlcourse.training.trainer import make_trainer
from tests.samples import Given, YesOrNo, two_classes


@pytest.fixture
def parser() -> SettingsParser:
    parser = settings_parser(topics.find("height-weight"), "train")
    parser.add_command(train)
    return parser


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write text into a file of the current folder and give its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("mine.yaml").write_text(text, encoding="utf-8")
        return "mine.yaml"

    return write


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRONG_FLAGS = {
    "--modle.lr 1": "unknown flag --modle.lr; did you mean --model.lr?",
    "--model.l 8": "unknown flag --model.l; did you mean --model.lr?",
    "--model.l=8": "unknown flag --model.l; did you mean --model.lr?",
    "--model.learning 8": "unknown flag --model.learning; see `dlcourse train height-weight --help`",
    "--lr 8": "unknown flag --lr; did you mean --model.lr?",
    "--epochs 8": "unknown flag --epochs; did you mean --trainer.max_epochs?",
    "-model.lr 8": "unrecognized arguments: -model.lr 8",
    "--model.shape 3": "unknown flag --model.shape; see `dlcourse train height-weight --help`",
    "--trainer.monitor x": "unknown flag --trainer.monitor; see `dlcourse train height-weight --help`",
    "--jsn": "unknown flag --jsn; did you mean --json?",
    "-x": "unrecognized arguments: -x",
    "extra": "unrecognized arguments: extra",
    "--model.lr 0.1 0.2": "unrecognized arguments: 0.2",
    "--model 3": "unknown flag --model; see `dlcourse train height-weight --help`",
    "--model.lr": "--model.lr needs a value: a number above 0",
    "--model.lr --seed 1": "--model.lr needs a value: a number above 0",
    "--model.lr=": "--model.lr needs a value: a number above 0",
    "--model.optimizer": "--model.optimizer needs a value: one of sgd, nesterov, adam, adamw",
    "--config": "--config needs a value: a YAML file",
    "--model.decoupled true": "--model.decoupled is called --model.lr_per_1024_samples now",
    "--model.lr -1": "--model.lr must be a number above 0, not -1",
    "--model.lr=-1": "--model.lr must be a number above 0, not -1",
    "--model.lr -1e-3": "--model.lr must be a number above 0, not -1e-3",
    "--model.lr 0": "--model.lr must be a number above 0, not 0",
    "--model.lr nan": "--model.lr must be a number above 0, not nan",
    "--model.lr inf": "--model.lr must be a number above 0, not inf",
    "--model.lr fast": "--model.lr must be a number above 0, not fast",
    "--model.lr null": "--model.lr must be a number above 0, not null",
    "--model.momentum 1": "--model.momentum must be a number of at least 0 and below 1, not 1",
    "--model.weight_decay -1": "--model.weight_decay must be a number of at least 0, not -1",
    "--model.optimizer sdg": "--model.optimizer must be one of sgd, nesterov, adam, adamw, not sdg; did you mean sgd?",
    "--model.optimizer lion": "--model.optimizer must be one of sgd, nesterov, adam, adamw, not lion",
    "--data.source tabel": "--data.source must be one of make_regression, table, not tabel; did you mean table?",
    "--data.batch_size 0": "--data.batch_size must be a whole number above 0, not 0",
    "--data.batch_size 1.5": "--data.batch_size must be a whole number above 0, not 1.5",
    "--data.val_fraction 1": "--data.val_fraction must be a number of at least 0 and below 1, not 1",
    "--data.val_fraction -0.1": "--data.val_fraction must be a number of at least 0 and below 1, not -0.1",
    "--data.standardize maybe": "--data.standardize must be true or false, not maybe",
    "--data.ask 3": "--data.ask must be a list such as [1,2] or null, not 3",
    "--data.ask [tall]": "--data.ask must be a list such as [1,2] or null, not [tall]",
    "--trainer.max_epochs 0": "--trainer.max_epochs must be a whole number above 0, not 0",
    "--trainer.patience 0": "--trainer.patience must be a whole number above 0 or null, not 0",
    "--trainer.devices two": "--trainer.devices must be a whole number above 0 or auto, not two",
    "--trainer.accelerator tpu": "--trainer.accelerator must be one of auto, cpu, gpu, cuda, mps, not tpu; "
    "did you mean cpu?",
    "--trainer.accumulate_grad_batches 0": "--trainer.accumulate_grad_batches must be a whole number above 0, not 0",
    "--trainer.acumulate_grad_batches 4": "unknown flag --trainer.acumulate_grad_batches; did you mean "
    "--trainer.accumulate_grad_batches?",
    "--trainer.max_steps many": "--trainer.max_steps must be a whole number above 0, not many",
    "--trainer.max_steps": "--trainer.max_steps needs a value: a whole number above 0",
    "--trainer.val_check_interval 1.0": "--trainer.val_check_interval must be a number between 0 and 1 or a whole "
    "number above 1, not 1.0",
    "--trainer.profiler simpel": "--trainer.profiler must be one of simple, advanced, pytorch, not simpel; "
    "did you mean simple?",
    "--trainer.precision 8": "--trainer.precision must be one of auto, 32-true, bf16-mixed, 16-mixed, 64-true, "
    "bf16-true, not 8",
    "--seed -1": "--seed must be a whole number from 0 to 4294967295, not -1",
    "--seed 4294967296": "--seed must be a whole number from 0 to 4294967295, not 4294967296",
    "--refit perhaps": "--refit must be true or false, not perhaps",
}


@pytest.mark.parametrize("flags", WRONG_FLAGS)
def test_a_wrong_flag_is_told(parser: SettingsParser, flags: str) -> None:
    assert refusal(lambda: parser.parse_flags(flags.split())) == WRONG_FLAGS[flags]


def test_jsonargparse_names_the_key_and_keeps_the_type_where_explanation_looks_for_them(parser: SettingsParser) -> None:
    """Both are private matters of jsonargparse: when it changes them, this fails first."""
    with pytest.raises(argparse.ArgumentError, match=r'^Parser key "model\.lr":'):
        parser.parser.parse_args(["--model.lr=fast"], defaults=False)
    (action,) = (each for each in parser.parser._actions if each.dest == "model.lr")
    assert action._typehint is PositiveFloat


def test_a_value_with_spaces_is_quoted(parser: SettingsParser) -> None:
    assert refusal(lambda: parser.parse_flags(["--model.lr", "very\nfast"])) == (
        "--model.lr must be a number above 0, not 'very fast'"
    )
    assert refusal(lambda: parser.parse_flags(["--model.lr", ""])) == "--model.lr must be a number above 0, not ''"


WRONG_FILES = {
    "model: [1": "mine.yaml line 1 is not valid YAML",
    "model:\n\tlr: 1": "mine.yaml line 2 is not valid YAML",
    "a: 1\n---\nb: 1": "mine.yaml line 2 is not valid YAML",
    "": "mine.yaml is empty",
    "# model:\n#   lr: 1": "mine.yaml is empty",
    "- lr": "mine.yaml holds a list",
    "fast": "mine.yaml holds a str",
    "model: 3": "mine.yaml: model must hold keys and values",
    "model:\n#  lr: 1": "mine.yaml: model must hold keys and values",
    "modle:\n  lr: 1": "mine.yaml: unknown key modle; did you mean model?",
    "model:\n  lrr: 1": "mine.yaml: unknown key model.lrr; did you mean model.lr?",
    "lr: 1": "mine.yaml: unknown key lr; did you mean model.lr?",
    "config: other.yaml": "mine.yaml: unknown key config",
    "json: true": "mine.yaml: unknown key json",
    "name: mine": "mine.yaml: unknown key name",
    "1: 2": "mine.yaml: unknown key 1",
    "model:\n  lr: -1": "mine.yaml: model.lr must be a number above 0, not -1",
    "model.lr: -1": "mine.yaml: model.lr must be a number above 0, not -1",
    "model:\n  lr: fast": "mine.yaml: model.lr must be a number above 0, not fast",
    "model:\n  lr:": "mine.yaml: model.lr must be a number above 0, not null",
    "model:\n  lr: true": "mine.yaml: model.lr must be a number above 0, not true",
    "model:\n  lr: .inf": "mine.yaml: model.lr must be a number above 0, not inf",
    "model:\n  lr: [1]": "mine.yaml: model.lr must be a number above 0, not [1]",
    "data:\n  batch_size: 1.5": "mine.yaml: data.batch_size must be a whole number above 0, not 1.5",
    "data:\n  standardize: maybe": "mine.yaml: data.standardize must be true or false, not maybe",
    "seed: -1": "mine.yaml: seed must be a whole number from 0 to 4294967295, not -1",
    "model:\n  lr: 1\n  lr: 2": "mine.yaml line 3 is not valid YAML: lr is set twice",
    "model:\n  lr: 1\nseed: 1\n\nmodel:\n  momentum: 0": "mine.yaml line 5 is not valid YAML: model is set twice",
    'model: {lr: 1, "lr": 2}': "mine.yaml line 1 is not valid YAML: lr is set twice",
    "model:\n  lr: 1\nmodel.lr: 2": "mine.yaml: model.lr is set twice",
}


def resolved(*files: str, **groups: Any) -> dict[str, Any]:
    values = (groups.get(group) for group in ("data", "model", "trainer", "seed"))
    return resolve("height-weight", files, *values).settings.flat()


@pytest.mark.parametrize("content", WRONG_FILES)
def test_a_wrong_file_is_told(written: Callable[[str], str], content: str) -> None:
    file = written(content)
    assert WRONG_FILES[content] in refusal(lambda: resolved(file))


def test_a_wrong_value_in_a_file_is_told_though_an_argument_would_replace_it(written: Callable[[str], str]) -> None:
    file = written("model:\n  lr: -1")
    assert "mine.yaml" in refusal(lambda: resolved(file, model={"lr": 0.1}))


def test_a_file_that_runs_code_is_not_read(written: Callable[[str], str]) -> None:
    file = written("model:\n  lr: !!python/object/apply:os.getcwd []")
    assert "line 2 is not valid YAML" in refusal(lambda: resolved(file))


def test_a_file_that_is_no_text_is_told(written: Callable[[str], str]) -> None:
    file = written("")
    Path(file).write_bytes(b"\xff\xfe\x00\x81")
    assert "mine.yaml is not valid YAML: " in refusal(lambda: resolved(file))


def test_a_missing_file_names_the_nearest_file_or_experiment_and_else_those_there_are(
    written: Callable[[str], str],
) -> None:
    assert "default" in refusal(lambda: resolved("nowhere/at_all.yaml"))
    written("seed: 1")
    assert refusal(lambda: resolved("mien.yaml")).endswith("did you mean mine.yaml?")
    assert refusal(lambda: resolved("tabel")).endswith("did you mean table?")
    assert refusal(lambda: resolved(".")).startswith("--config . is neither a file nor an experiment")


def test_an_experiment_is_found_by_its_name(written: Callable[[str], str], tmp_path: Path) -> None:
    assert resolved("table")["data.source"] == "table"
    own = tmp_path / "experiments" / "height-weight"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("model:\n  lr: 0.03\n")
    (own / "deeper").mkdir()
    assert resolved("mine")["model.lr"] == 0.03, "of the nearest experiments folder upwards"


# --- what is right ---


def given(parser: SettingsParser, *flags: str) -> dict[str, Any]:
    """What a command line gives, by dotted name."""
    values = parser.parse_flags(flags)
    groups = {
        f"{group}.{name}": each
        for group in ("data", "model", "trainer")
        for name, each in values.get(group, {}).items()
    }
    return groups | {name: value for name, value in values.items() if name not in ("data", "model", "trainer")}


def test_arguments_win_over_files_and_later_files_over_earlier_ones(written: Callable[[str], str]) -> None:
    first = Path(written("model:\n  lr: 0.5\n  momentum: 0.5\n")).rename("first.yaml")
    second = written("model:\n  lr: 0.7\n")
    settings = resolved(str(first), second)
    assert (settings["model.lr"], settings["model.momentum"]) == (0.7, 0.5)
    settings = resolved(str(first), second, model={"lr": 0.2})
    assert (settings["model.lr"], settings["model.momentum"]) == (0.2, 0.5)


def test_files_are_told_from_flags_wherever_they_stand(parser: SettingsParser) -> None:
    for flags in (["--config", "a.yaml", "--model.lr", "0.2"], ["--model.lr=0.2", "--config=a.yaml"]):
        assert given(parser, *flags) == {"config": ["a.yaml"], "model.lr": 0.2}
    assert given(parser, "--config", "a.yaml", "--config", "b.yaml") == {"config": ["a.yaml", "b.yaml"]}
    assert given(parser, "--model.lr", "2", "--model.lr", "3") == {"model.lr": 3.0}
    assert given(parser) == {}, "nothing but what is given"


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--model.lr 1e-3", "model.lr", 0.001),
        ("--model.lr=1", "model.lr", 1.0),
        ("--data.standardize false", "data.standardize", False),
        ("--trainer.fast_dev_run", "trainer.fast_dev_run", True),
        ("--trainer.fast_dev_run --seed 3", "seed", 3),
        ("--trainer.patience null", "trainer.patience", None),
        ("--trainer.devices auto", "trainer.devices", "auto"),
        ("--trainer.devices 2", "trainer.devices", 2),
        ("--data.ask [-1.5,2]", "data.ask", [-1.5, 2.0]),
        ("--data.ask+ 1 --data.ask+ 2", "data.ask", [1.0, 2.0]),
        ("--trainer.precision 32-true", "trainer.precision", "32-true"),
        ("--init-from first", "init_from", "first"),
        ("--name -1", "name", "-1"),
        ("--name -x", "name", "-x"),
        ("--name=--x=y", "name", "--x=y"),
    ],
)
def test_values_are_read_as_their_types(parser: SettingsParser, flags: str, key: str, value: Any) -> None:
    read = given(parser, *flags.split())[key]
    assert read == value
    assert type(read) is type(value), "jsonargparse's own number types must not reach a checkpoint"


def test_a_file_of_an_earlier_version_is_read(written: Callable[[str], str]) -> None:
    file = written("model:\n  decoupled: true\n")
    assert resolve("cifar10", file, None, None, None, None).settings.model["lr_per_1024_samples"] is True


def test_exponents_in_a_file_are_numbers(written: Callable[[str], str]) -> None:
    assert resolved(written("model:\n  lr: 1e-3"))["model.lr"] == 0.001


def test_a_topic_without_experiments_has_the_defaults_of_its_classes(project: Path) -> None:
    data = type("Data", (Given,), {"given": two_classes(60)})
    topic = Topic("without-files", "Without files", data, YesOrNo, {"majority": baselines.majority})
    request = resolve(topic, None, None, {"lr": 0.5}, None, None)
    assert (request.settings.model["lr"], request.experiment.model["lr"]) == (0.5, 0.01)
    assert request.run_name == "default, model.lr=0.5"


@pytest.mark.parametrize("arguments", [{}, {"model": {"lr": 0.25}, "data": {"ask": [1, 2]}, "seed": 7}])
def test_settings_as_yaml_are_a_file(written: Callable[[str], str], arguments: dict[str, Any]) -> None:
    groups = (arguments.get(group) for group in ("data", "model", "trainer", "seed"))
    settings = resolve("height-weight", None, *groups).settings
    assert list(yaml.safe_load(settings.as_yaml())) == ["seed", "data", "model", "trainer"], "what every verb takes"
    assert resolve("height-weight", written(settings.as_yaml()), None, None, None, None).settings == settings


def test_changes_are_what_differs() -> None:
    before = Settings({"a": 1}, {"lr": 0.1, "loss": "mse"}, {}, 0)
    after = Settings({"a": 1}, {"lr": 0.2, "loss": "mse"}, {}, 3)
    assert after.changes(before) == {"seed": 3, "model.lr": 0.2}
    assert before.changes(before) == {}


# --- options of Lightning's Trainer ---


def test_lightnings_options_are_settings_only_where_they_are_given(
    parser: SettingsParser, written: Callable[[str], str]
) -> None:
    plain = resolved()
    assert not {f"trainer.{name}" for name in LIGHTNINGS} & plain.keys()
    assert plain["trainer.max_epochs"] == 200, "the topic's"
    flags = "--trainer.accumulate_grad_batches 4 --trainer.max_steps=100 --trainer.val_check_interval 0.5"
    given = parser.parse_flags([*flags.split(), "--trainer.enable_progress_bar", "false", "--trainer.detect_anomaly"])
    expected = {"accumulate_grad_batches": 4, "max_steps": 100, "val_check_interval": 0.5}
    assert given["trainer"] == {**expected, "enable_progress_bar": False, "detect_anomaly": True}
    file = written("trainer:\n  max_steps: 7\n  limit_val_batches: 3\n")
    settings = resolved(file, trainer=expected)
    assert settings == {**plain, **{f"trainer.{name}": value for name, value in expected.items()}} | {
        "trainer.limit_val_batches": 3
    }


def test_a_topics_own_file_may_have_them(project: Path) -> None:
    folder = project / "experiments" / "height-weight"
    folder.mkdir(parents=True)
    (folder / "default.yaml").write_text("trainer:\n  accumulate_grad_batches: 2\n")
    assert resolved()["trainer.accumulate_grad_batches"] == 2


def test_lightning_has_every_option_that_is_a_setting() -> None:
    assert LIGHTNINGS.keys() <= inspect.signature(L.Trainer).parameters.keys()
    assert not LIGHTNINGS.keys() & inspect.signature(make_trainer).parameters.keys()


def test_a_run_with_them_is_stored_and_resumed_with_them(project: Path) -> None:
    options = {"accumulate_grad_batches": 2, "check_val_every_n_epoch": 2, "max_epochs": 2}
    first = dlcourse.train("height-weight", trainer=options)
    assert isinstance(first, Result)
    assert [step for step, _ in first.history["val/loss"]] == [1]
    params = dlcourse.open_store().client.get_run(first.run_id).data.params
    assert (params["trainer.accumulate_grad_batches"], "trainer.max_steps" in params) == ("2", False)
    second = dlcourse.train("height-weight", resume=first.run_id, trainer={"max_epochs": 4})
    assert isinstance(second, Result)
    whole = dlcourse.train("height-weight", trainer={**options, "max_epochs": 4})
    assert isinstance(whole, Result)
    assert second.history["val/loss"] == whole.history["val/loss"]
    with pytest.raises(SettingsError, match=r"--trainer\.accumulate_grad_batches was 2 in it"):
        dlcourse.train("height-weight", resume=first.run_id, trainer={"accumulate_grad_batches": 1})


@pytest.mark.parametrize("steps", [1, 7])
def test_a_run_may_end_by_its_steps(project: Path, steps: int) -> None:
    result = dlcourse.train("height-weight", trainer={"max_steps": steps, "val_check_interval": 0.5})
    assert isinstance(result, Result)
    assert result.fitted
    assert (result.fitted.trainer.global_step, result.fitted.why_stopped) == (steps, "at the last step")
    assert result.lost == {}
    assert overfit("height-weight", trainer={"max_steps": steps}).steps > 7, "it has steps of its own"


# --- from Python ---

WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"model": {"lrr": 1}}, "unknown key model.lrr; did you mean model.lr?"),
    ({"model": {"lr": -1}}, "model.lr must be a number above 0, not -1"),
    ({"model": {"lr": "fast"}}, "model.lr must be a number above 0, not fast"),
    ({"model": {"lr": None}}, "model.lr must be a number above 0, not null"),
    ({"model": {"lr": math.inf}}, "model.lr must be a number above 0, not inf"),
    ({"model": {"lr": True}}, "model.lr must be a number above 0, not true"),
    ({"model": 3}, "model must hold keys and values, not 3"),
    ({"model": ["lr"]}, "model must hold keys and values, not ['lr']"),
    ({"data": {"val_fraction": 2}}, "data.val_fraction must be a number of at least 0 and below 1, not 2"),
    ({"data": {"split_seed": 2**70}}, f"data.split_seed must be a whole number from 0 to 4294967295, not {2**70}"),
    ({"data": {"ask": ["tall"]}}, "data.ask must be a list such as [1,2] or null, not ['tall']"),
    ({"trainer": {"max_epochs": 0}}, "trainer.max_epochs must be a whole number above 0, not 0"),
    ({"trainer": {"max_epochs": 1.5}}, "trainer.max_epochs must be a whole number above 0, not 1.5"),
    ({"trainer": {"max_steps": None}}, "trainer.max_steps must be a whole number above 0, not null"),
    ({"trainer": {"max_stepz": 3}}, "unknown key trainer.max_stepz; did you mean trainer.max_steps?"),
    ({"trainer": {"callbacks": []}}, "unknown key trainer.callbacks; see `dlcourse train height-weight --help`"),
    ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
    ({"seed": "one"}, "seed must be a whole number from 0 to 4294967295, not one"),
    ({"config": "nowhere.yaml"}, "--config nowhere.yaml is neither a file nor an experiment of height-weight"),
    (
        {"data": {"val_fraction": 0.6, "test_fraction": 0.6}},
        "--data.val_fraction 0.6 and --data.test_fraction 0.6 leave no row to train on: their sum must stay below 1",
    ),
    ({"data": {"val_fraction": 0.001}}, "--data.val_fraction 0.001 of 100 rows is none: raise it, or set it to 0"),
    ({"trainer": {"strategy": "dpp"}}, "--trainer.strategy dpp is unknown; did you mean ddp?"),
    (
        {"data": {"val_fraction": 0}, "refit": True},
        "--refit needs validation rows",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS, ids=[str(each) for each, _ in WRONG_ARGUMENTS])
def test_a_wrong_argument_of_train_is_told(project: Path, arguments: dict[str, Any], message: str) -> None:
    assert refusal(lambda: dlcourse.train("height-weight", **arguments)).startswith(message)
    assert not (project / "mlruns" / "artifacts").exists(), "no run was begun"


@pytest.mark.parametrize("topic", ["heigt-weight", "Height-Weight"])
def test_a_wrong_topic_names_the_nearest(topic: str) -> None:
    assert refusal(lambda: dlcourse.train(topic)).endswith("; did you mean height-weight?")


@pytest.mark.parametrize("topic", ["chess", 3, None])
def test_a_topic_near_to_none_names_all(topic: Any) -> None:
    line = refusal(lambda: dlcourse.train(topic))
    assert repr(topic) in line
    assert all(name in line for name in dlcourse.topics.titles())


def test_resume_goes_without_config(project: Path) -> None:
    (project / "mine.yaml").write_text("seed: 1")
    message = refusal(lambda: dlcourse.train("height-weight", config="mine.yaml", resume="abcd"))
    assert "leave --config out" in message


class Seeded(YesOrNo):
    """Notes the seed that its weights were drawn by."""

    seeds: ClassVar[list[int]] = []

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        self.seeds.append(torch.initial_seed())
        super().__init__(shape, outputs, **settings)


@pytest.mark.parametrize(
    ("verb", "own"),
    [(train, {}), (train, {"folds": 2}), (overfit, {}), (check_topic, {})],
)
def test_an_argument_that_is_given_counts_whatever_its_truth_value(
    project: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[..., Any], own: dict[str, Any]
) -> None:
    monkeypatch.setattr("dlcourse.training.overfit_batch.STEPS", 2)
    (project / "mine.yaml").write_text("seed: 5\ntrainer:\n  max_epochs: 1\n")
    data = type("Data", (Given,), {"given": two_classes(60)})
    topic = Topic("seeded", "Seeded", data, Seeded, {"majority": baselines.majority})
    for given, expected in (({}, 5), ({"seed": 0}, 0)):
        Seeded.seeds.clear()
        verb(topic, config="mine.yaml", **own, **given)
        assert set(Seeded.seeds) == {expected}


def test_false_and_null_count_over_a_file_too(written: Callable[[str], str]) -> None:
    file = written("data:\n  standardize: true\ntrainer:\n  patience: 3\n")
    settings = resolved(file, data={"standardize": False}, trainer={"patience": None})
    assert (settings["data.standardize"], settings["trainer.patience"]) == (False, None)


def test_groups_that_are_none_are_nothing_given(project: Path) -> None:
    quick = {"max_epochs": 1}
    assert dlcourse.train("height-weight", config=None, data=None, model=None, trainer=quick).run_id


def test_a_word_that_is_no_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="epochs"):
        dlcourse.train("height-weight", epochs=3)  # type: ignore[call-arg]


# --- inputs and features of predict ---


def collected(*words: str) -> dict[str, Any]:
    parser = SettingsParser("dlcourse predict")
    parser.add_command(predict)
    return parser.parse_flags(words)


def test_words_without_a_flag_and_flags_that_are_not_known_are_collected() -> None:
    values = collected("a.png", "-1.5", "-1e-3", "--top", "2", "--blood-pressure", "-3", "--age=4", "b.png")
    assert values["inputs"] == ["a.png", "-1.5", "-1e-3", "b.png"]
    assert values["features"] == {"blood_pressure": "-3", "age": "4"}
    assert values["top"] == 2


def test_a_switch_takes_no_input_for_its_value() -> None:
    assert collected("--invert", "a.png") == {"inputs": ["a.png"], "features": {}, "invert": True}
    assert collected("--invert", "false", "a.png")["invert"] is False
    assert collected("a.png", "--invert")["invert"] is True


def test_a_feature_needs_a_value() -> None:
    for words in (["--age"], ["--age", "--top", "2"]):
        with pytest.raises(SettingsError, match="--age needs a value"):
            collected(*words)


# --- words ---


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, "true or false"),
        (int, "a whole number"),
        (str | None, "text or null"),
        (PositiveInt | Literal["auto"], "a whole number above 0 or auto"),
        (list[str], "a list such as [one,two]"),
        (Path, "a path"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert described(hint) == words


@pytest.mark.parametrize(
    ("wrong", "right", "near"),
    [
        ("heigt", ["height", "weight"], "height"),
        ("--val", ["--data.val_fraction", "--data.batch_size"], "--data.val_fraction"),
        ("--Model.LR", ["--model.lr"], "--model.lr"),
        ("--model.max_epochs", ["--trainer.max_epochs", "--model.momentum"], "--trainer.max_epochs"),
        ("--model.callbacks", ["--model.momentum"], None),
        ("x", [], None),
    ],
)
def test_suggestion_is_the_nearest_word_if_any_is_near(wrong: str, right: list[str], near: str | None) -> None:
    assert suggestion(wrong, right) == (f"; did you mean {near}?" if near else "")
