"""The command line as a person uses it: what it prints where, its exit status, and what it does not load."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.entities import Run

import dlcourse
from dlcourse import __version__
from dlcourse.cli import VERBS, main
from dlcourse.tracking.opening import open_store
from tests.conftest import EXPERIMENTS, Dlcourse
from tests.terminal import terminal

Capture = pytest.CaptureFixture[str]
QUICK = ["--trainer.max_epochs", "2"]


def refused(capsys: Capture, *arguments: str, status: int = 2) -> str:
    """The one line on stderr of a command that must be refused."""
    capsys.readouterr()
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dlcourse: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    return shown.err.removeprefix("dlcourse: ").rstrip("\n")


def printed(capsys: Capture, *arguments: str, status: int = 0) -> str:
    """What a command prints on stdout, with nothing on stderr."""
    capsys.readouterr()
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


# --- verbs and topics ---


def test_help_lists_every_verb_and_topic(capsys: Capture) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        text = printed(capsys, *arguments)
        assert all(f"\n  {verb} " in text for verb in VERBS)
        assert re.search(r"\n  height-weight +Height and weight: a straight line through points\n", text)


def test_help_of_a_verb_lists_the_topics(capsys: Capture) -> None:
    text = printed(capsys, "train", "--help")
    assert text.startswith("usage: dlcourse train TOPIC [FLAGS]\n")
    assert "  height-weight  " in text


def test_help_of_a_topic_tells_every_setting(capsys: Capture) -> None:
    text = printed(capsys, "train", "height-weight", "--help")
    for setting in ("--model.lr", "--data.source", "--trainer.max_epochs", "--seed", "--json", "--resume", "--refit"):
        assert f"\n  {setting} " in text or f"\n  {setting}\n" in text, setting
    assert "Learning rate." in text
    assert "--model CONFIG" not in text


def test_version(capsys: Capture) -> None:
    for flag in ("--version", "-V", "version"):
        assert printed(capsys, flag) == f"dlcourse {__version__}\n"


def test_topics_are_listed_with_their_titles(capsys: Capture) -> None:
    lines = printed(capsys, "topics").splitlines()
    assert "height-weight\tHeight and weight: a straight line through points" in lines
    assert lines == sorted(lines)


def test_wrong_verbs_and_topics(capsys: Capture) -> None:
    assert refused(capsys, "tran", "height-weight") == "unknown verb 'tran'; did you mean train?"
    assert refused(capsys, "cook") == f"unknown verb 'cook'; the verbs are {', '.join(VERBS)}"
    assert refused(capsys, "--tran").startswith("unknown verb '--tran'")
    assert refused(capsys, "train").startswith("train needs a topic before any flag: one of ")
    assert refused(capsys, "train", "--seed", "1", "height-weight").startswith("train needs a topic before any flag")
    assert refused(capsys, "test").startswith("test needs a topic before any flag: one of ")
    assert refused(capsys, "train", "heigt-weight").endswith("; did you mean height-weight?")
    assert all(name in refused(capsys, "test", "chess") for name in ("'chess'", "height-weight", "cifar10"))
    assert "all" in refused(capsys, "topics", "all")


def test_what_needs_no_library_loads_none() -> None:
    code = """
import sys
from dlcourse.cli import main

for command in ("", "--help", "--version", "topics", "tran", "train", "train heigt", "train --help"):
    main(command.split())
heavy = {name.partition(".")[0] for name in sys.modules} & {
    "torch", "torchmetrics", "torchvision", "lightning", "mlflow", "numpy", "sklearn", "matplotlib", "jsonargparse"
}
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- settings ---

REFUSED = {
    "--modle.lr 1": "unknown flag --modle.lr; did you mean --model.lr?",
    "--model.l 8": "unknown flag --model.l; did you mean --model.lr?",
    "--model.lr -1": "--model.lr must be a number above 0, not -1",
    "--model.lr=-1": "--model.lr must be a number above 0, not -1",
    "--data.batch_size 0": "--data.batch_size must be a whole number above 0, not 0",
    "--trainer.max_epochs 0": "--trainer.max_epochs must be a whole number above 0, not 0",
    "--data.val_fraction 0.6 --data.test_fraction 0.4": "--data.val_fraction 0.6 and --data.test_fraction 0.4 leave no "
    "row to train on: their sum must stay below 1",
    "--data.test_fraction 0.001": "--data.test_fraction 0.001 of 100 rows is none: raise it, or set it to 0",
    "--trainer.devices 4096": f"--trainer.devices 4096 is too many: this machine has {os.cpu_count()} CPU cores",
    "--trainer.strategy dpp": "--trainer.strategy dpp is unknown; did you mean ddp?",
    "--refit --data.val_fraction 0": "--refit needs validation rows",
    "--config nowhere.yaml": "--config nowhere.yaml is neither a file nor an experiment of height-weight",
    "--resume": "--resume needs a value: text or null",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_setting_that_cannot_be_taken(project: Path, capsys: Capture, flags: str) -> None:
    arguments = ["train", "height-weight", *flags.split(), "--trainer.accelerator", "cpu"]
    assert refused(capsys, *arguments).startswith(REFUSED[flags])
    assert refused(capsys, *arguments, "--json").startswith(REFUSED[flags])
    assert not (project / "mlruns" / "artifacts").exists(), "no run was begun"


@pytest.mark.parametrize("accelerator", ["cuda", "gpu", "mps"])
def test_an_accelerator_that_is_not_there(
    project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    line = refused(capsys, "train", "height-weight", "--trainer.accelerator", accelerator)
    assert line.startswith(f"--trainer.accelerator {accelerator} is not there")
    assert line.endswith("use auto or cpu")


def test_a_run_that_does_not_exist(project: Path, capsys: Capture) -> None:
    for arguments in (["train", "height-weight", "--resume", "abcd"], ["test", "height-weight", "--run", "abcd"]):
        line = refused(capsys, *arguments, status=1)
        assert line == f"height-weight has no run 'abcd' in {project / 'mlruns'}; there is none yet"


def test_what_test_is_to_measure_must_be_said_once(project: Path, capsys: Capture) -> None:
    for flags in ([], ["--run", "a", "--checkpoint", "b"]):
        line = refused(capsys, "test", "height-weight", *flags)
        assert "--run" in line
        assert "--checkpoint" in line
    assert refused(capsys, "test", "height-weight", "--chekpoint", "x").endswith("did you mean --checkpoint?")


def test_a_checkpoint_that_is_none(project: Path, capsys: Capture) -> None:
    def tested(name: str) -> str:
        return refused(capsys, "test", "height-weight", "--checkpoint", name, status=1)

    assert tested("nowhere.ckpt") == "there is no checkpoint nowhere.ckpt"
    (project / "text.ckpt").write_text("lr: 1")
    torch.save({"something": "else"}, project / "other.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, project / "foreign.ckpt")
    assert tested("text.ckpt").startswith("text.ckpt is no checkpoint")
    assert tested("other.ckpt").startswith("other.ckpt is no Lightning checkpoint")
    assert tested("foreign.ckpt").startswith("foreign.ckpt is no checkpoint of height-weight")
    assert tested(".").startswith(". is no checkpoint")


def test_ui_refuses_wrong_flags(capsys: Capture) -> None:
    assert refused(capsys, "ui", "--port", "x") == "--port must be a whole number above 0, not x"
    assert refused(capsys, "ui", "--prt", "1") == "unknown flag --prt; did you mean --port?"


# --- configuration ---


def test_print_config_round_trips(project: Path, capsys: Capture) -> None:
    command = ["train", "height-weight", "--config", str(EXPERIMENTS / "height-weight" / "lecture.yaml")]
    first = printed(capsys, *command, "--model.lr=0.5", "--seed", "3", "--print_config")
    content = yaml.safe_load(first)
    assert (content["seed"], content["model"]["lr"], content["data"]["val_fraction"]) == (3, 0.5, 0)
    Path("mine.yaml").write_text(first)
    for verb in ("train", "overfit"):
        assert printed(capsys, verb, "height-weight", "--config", "mine.yaml", "--print_config") == first
    assert not (project / "mlruns" / "artifacts").exists()


def test_a_flag_wins_over_the_file_wherever_it_stands(project: Path, capsys: Capture) -> None:
    Path("mine.yaml").write_text("model:\n  lr: 0.5\n")
    for flags in (["--model.lr", "0.2", "--config", "mine.yaml"], ["--config=mine.yaml", "--model.lr=0.2"]):
        text = printed(capsys, "train", "height-weight", *flags, "--print_config")
        assert yaml.safe_load(text)["model"]["lr"] == 0.2


# --- what is printed where ---


def strictly(text: str) -> Any:
    """JSON as other languages read it: without NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_train_prints_its_card(project: Path, capsys: Capture) -> None:
    text = printed(capsys, "train", "height-weight", *QUICK, "--name", "mine")
    assert text.startswith("height-weight: mine\n  verdict ")
    assert text.count("\n") == len(text.strip().splitlines())


def test_json_is_one_object_on_stdout_and_all_else_on_stderr(project: Path, capsys: Capture) -> None:
    assert main(["train", "height-weight", "--json", *QUICK]) == 0
    shown = capsys.readouterr()
    content = strictly(shown.out)
    assert shown.out.count("\n") == 1
    assert content["topic"] == "height-weight"
    assert content["metrics"]["test/mse"] > 0
    assert "verdict" in shown.err, "the card"
    assert main(["test", "height-weight", "--run", content["run_id"], "--json"]) == 0
    assert strictly(capsys.readouterr().out)["test/mse"] == content["metrics"]["test/mse"]


def test_json_of_one_test_row_has_no_interval(project: Path, capsys: Capture) -> None:
    flags = ["--data.source", "table", "--data.test_fraction", "0.2", "--data.val_fraction", "0.2"]
    assert main(["train", "height-weight", "--json", *flags, *QUICK]) == 0
    strictly(capsys.readouterr().out)


def test_a_run_that_diverges_fails(project: Path, capsys: Capture) -> None:
    command = ["train", "height-weight", "--json", "--data.source", "table", "--data.standardize", "false"]
    fit_only = ["--data.val_fraction", "0", "--data.test_fraction", "0"]
    assert main([*command, *fit_only]) == 1
    shown = capsys.readouterr()
    content = strictly(shown.out)
    assert content["verdict"]["sentence"] == "diverged"
    assert "--data.standardize true" in content["verdict"]["advice"]
    assert "--data.standardize true" in shown.err


def test_the_process_itself_writes_nothing_else(dlcourse: Dlcourse) -> None:
    done = dlcourse("train", "height-weight", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert strictly(done.stdout)["topic"] == "height-weight"
    first, *others = done.stderr.splitlines()
    assert first == "importing torch, Lightning and MLflow ..."
    lines = [line for line in others if not line.endswith(" ...")]  # phases that took longer than two seconds
    assert lines[0].startswith("height-weight: 60 training, 20 validation, 20 test rows of ")
    assert [line.startswith(f"epoch {epoch}/1  train/loss ") for epoch, line in enumerate(lines[1:3])] == [True, True]
    assert lines[3].startswith("height-weight: default, max_epochs=2"), "the card"
    assert "Warning" not in done.stderr


def test_the_process_ends_with_the_status_and_after_the_exit_handlers_of_libraries() -> None:
    code = """
import atexit
from dlcourse import cli

def main():
    atexit.register(print, "a library says good-bye")
    return called()

called, cli.main = cli.main, main
cli.run()
"""
    for verb, status in (("topics", 0), ("tran", 2)):
        done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert done.stdout.endswith("a library says good-bye\n")


def test_on_a_terminal_messages_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with terminal(monkeypatch) as read:
        assert main(["train", "height-weight", *QUICK]) == 0
        shown = read()
    assert re.search(r"\r[^\n]*height-weight: 60 training", shown)
    assert "epoch 0/1" not in shown


# --- topics from elsewhere ---

OUTSIDE = '''
"""A topic in a package of its own."""
import torch
from dlcourse import CourseData, Regressor, Rows, Topic, baselines


class Data(CourseData):
    def load(self) -> Rows:
        inputs = torch.linspace(-1, 1, 50)[:, None]
        return Rows(inputs, 3 * inputs, "a formula", ("x",), ("y",))


class Line(Regressor):
    def __init__(self, shape: list[int], outputs: int, **settings: object) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = torch.nn.Linear(shape[0], outputs)


TOPIC = Topic(name="straight", title="A straight line", data=Data, model=Line, baselines={"mean": baselines.mean})
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package of topics, given its source and its entry points, for one test."""

    def install(source: str, **entries: str) -> None:
        package = tmp_path / "site" / "outside"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('listing topics must not import packages')")
        (package / "lines.py").write_text(source)
        info = tmp_path / "site" / "outside-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        points = "\n".join(f"{name.replace('_', '-')} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[dlcourse.topics]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")

    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_topic_of_another_package_is_listed_found_and_trained(project: Path, capsys: Capture, installed: Any) -> None:
    installed(OUTSIDE, straight="outside.lines:TOPIC")
    assert "straight\tA straight line\n" in printed(capsys, "topics")
    assert refused(capsys, "train", "strait").endswith("; did you mean straight?")
    (project / "site" / "outside" / "__init__.py").write_text("")
    text = printed(capsys, "train", "straight", "--model.lr", "0.1", "--name", "first", "--trainer.max_epochs", "30")
    assert text.startswith("straight: first\n  verdict ")
    assert "learned: its outputs follow the targets" in text
    assert (
        refused(capsys, "train", "straight", "--model.lrr", "1") == "unknown flag --model.lrr; did you mean --model.lr?"
    )


def test_broken_topics_of_another_package_are_one_line(project: Path, capsys: Capture, installed: Any) -> None:
    installed(
        OUTSIDE,
        straight="outside.lines:TOPICS",
        gone="outside.nowhere:TOPIC",
        absent="not_there:TOPIC",
        data="outside.lines:Data",
        another="outside.lines:TOPIC",
    )
    listed = dict(line.split("\t") for line in printed(capsys, "topics").splitlines())
    assert listed["gone"] == "(cannot be read: no module named 'outside.nowhere')"
    assert listed["absent"] == "(cannot be read: no module named 'not_there')"
    assert "height-weight" in listed
    (project / "site" / "outside" / "__init__.py").write_text("")

    def found(name: str) -> str:
        return refused(capsys, "train", name, status=1)

    beginning = "topic {!r} (outside.{}) cannot be loaded: "
    assert found("straight").startswith(beginning.format("straight", "lines:TOPICS") + "AttributeError: ")
    assert found("gone").startswith(beginning.format("gone", "nowhere:TOPIC") + "ModuleNotFoundError: ")
    assert found("absent").endswith("cannot be loaded: ModuleNotFoundError: No module named 'not_there'")
    assert found("data").startswith("topic 'data': outside.lines:Data is no Topic")
    assert found("another") == "topic 'another' calls itself 'straight': give both the same name"


@pytest.mark.parametrize(
    ("source", "problem"),
    [("TOPIC = (", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: "), ("import not_there", "ModuleNotFoundError: ")],
)
def test_a_topic_whose_code_fails_is_one_line(
    project: Path, capsys: Capture, installed: Any, source: str, problem: str
) -> None:
    installed(source, straight="outside.lines:TOPIC")
    assert "straight\t" in printed(capsys, "topics")
    (project / "site" / "outside" / "__init__.py").write_text("")
    line = refused(capsys, "train", "straight", status=1)
    assert line.startswith(f"topic 'straight' (outside.lines:TOPIC) cannot be loaded: {problem}")


# --- what nobody foresaw ---


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file_kept_with_the_run(project: Path, capsys: Capture) -> None:
    assert main(["train", "height-weight", *QUICK]) == 0
    for outputs in project.rglob("predictions.npz"):
        outputs.write_bytes(b"damaged")
    assert main(["train", "height-weight", *QUICK, "--name", "unlucky"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if line.startswith(("Traceback", "  File"))]
    run = open_store().find_run("unlucky", "height-weight")
    assert lines[-1].startswith("dlcourse: ValueError: ")
    assert lines[-1].endswith(f"carry on with --resume {run.info.run_id}")
    file = Path(lines[-1].partition("the traceback is in ")[2].partition(";")[0])
    assert file.is_relative_to(project / "mlruns" / "artifacts" / "height-weight" / run.info.run_id)
    assert file.read_text().startswith("Traceback (most recent call last):\n")
    assert run.info.status == "FAILED"
    with pytest.raises(ValueError, match="pickle"):
        dlcourse.train("height-weight", trainer={"max_epochs": 2})


def test_its_file_is_a_temporary_one_where_the_run_can_keep_none(
    project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(project / "temporary"))
    (project / "mlruns" / "artifacts").write_text("a file in its place")
    assert main(["train", "height-weight", *QUICK]) == 1
    said = capsys.readouterr().err
    (file,) = (project / "temporary").rglob("traceback.txt")
    assert "dlcourse: NotADirectoryError: " in said
    assert said.endswith(f"the traceback is in {file}\n")
    assert "\nTraceback" not in said


def test_an_error_in_a_topic_of_ones_own_is_told_with_its_traceback(
    project: Path, capsys: Capture, installed: Any
) -> None:
    installed(OUTSIDE.replace("return Rows(", "return 1 / 0, Rows("), straight="outside.lines:TOPIC")
    (project / "site" / "outside" / "__init__.py").write_text("")
    assert main(["train", "straight"]) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last):\n" in said
    assert "lines.py" in said
    assert said.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.skipif(os.name != "posix", reason="the shell's pipes")
@pytest.mark.parametrize(("verb", "at_once"), [("topics", False), ("topics", True), ("--help", False)])
def test_a_reader_that_has_read_enough_ends_it_quietly(project: Path, verb: str, at_once: bool) -> None:
    command = [sys.executable, "-m", "dlcourse", verb]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1" if at_once else ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


# --- Ctrl-C ---


@pytest.mark.parametrize("verb", ["train --folds 3", "overfit", "compare"])
def test_ctrl_c_advises_what_can_be_done(project: Path, capsys: Capture, installed: Any, verb: str) -> None:
    """Of trainings that end as soon as they have begun, or, of two that are compared, the second one."""
    interrupts = """
class Line(Line):
    def training_step(self, *arguments):
        if not CALMLY_THE_FIRST or self.hparams["lr"] == 0.5:
            __import__("signal").raise_signal(2)
        return super().training_step(*arguments)


TOPIC = Topic("""
    interrupts = interrupts.replace("CALMLY_THE_FIRST", str(verb == "compare"))
    installed(OUTSIDE.replace("\nTOPIC = Topic(", interrupts), straight="outside.lines:TOPIC")
    (project / "site" / "outside" / "__init__.py").write_text("")
    for name, lr in (("slow", 0.1), ("fast", 0.5)):
        Path(f"{name}.yaml").write_text(f"model:\n  lr: {lr}\n")
    word, *flags = verb.split()
    files = ["slow.yaml", "fast.yaml"] if verb == "compare" else []
    assert main([word, "straight", *files, *flags, *(QUICK if word != "overfit" else [])]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dlcourse: stopped by SIGINT; start the command again")
    assert "--resume" not in line
    if verb == "compare":
        assert line.endswith("trainings that are finished are not trained again")
        assert len(runs_of("straight", "FINISHED")) == 1
    assert {run.info.status for run in runs_of("straight", "KILLED")}
    assert runs_of("straight", "RUNNING") == []


def runs_of(topic: str, status: str) -> list[Run]:
    store = open_store()
    wanted = f"attributes.status = '{status}' and tags.`dlcourse.kind` != 'baseline'"
    return list(store.client.search_runs([store.experiment(topic)], wanted))
