"""Where the rows of diabetes come from, what is refused, and the figures of the course's own experiments."""

import gzip
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import _openml

import dlcourse
from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.data.tables import read_table
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.reporting import figures
from dlcourse.topics import diabetes
from dlcourse.topics.diabetes import COURSE_FILE, FEATURES, DiabetesData
from dlcourse.training.checkpoints import read_checkpoint
from tests.conftest import EXPERIMENTS
from tests.samples import YesOrNo, data_of, labelled

Refused = Callable[..., str]


@pytest.fixture
def refused(project: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """Train, and be refused: the one line on stderr, where nothing else is said and no run is left behind."""

    def train(*flags: object, status: int = 1) -> str:
        store = dlcourse.open_store()
        caplog.clear()
        capfd.readouterr()
        assert main(["train", "diabetes", *map(str, flags)]) == status
        said = capfd.readouterr()
        assert said.out == ""
        # What is being done may be said as well, where it takes longer than two seconds.
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
        (line,) = said.err.splitlines()
        assert line.startswith("dlcourse: ")
        assert "Traceback" not in line
        assert runs(store.client) == []
        return line.removeprefix("dlcourse: ")

    return train


def runs(client: Any) -> list[Any]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments))


def table(count: int = 60, positives: int = 20, features: int = 8) -> list[list[float]]:
    """Made-up rows, label 1 in the last column for the first ones, in which it can be learned."""
    rows = np.random.default_rng(0).normal(size=(count, features)).round(3)
    rows[:positives] += 1
    return np.column_stack([rows, np.arange(count) < positives]).tolist()  # type: ignore[no-any-return]


def csv(rows: list[list[float]], header: str = "") -> str:
    return "\n".join([*([header] if header else []), *(",".join(map(repr, row)) for row in rows), ""])


# Sources


def test_263_of_the_course_file_759_women_are_diabetic(project: Path, openml: "OpenML") -> None:
    data = DiabetesData()
    data.prepare_data()
    rows = data.rows
    assert (len(rows.targets), int(rows.targets.sum()), rows.classes[1]) == (759, 263, "diabetic")
    assert float(rows.inputs.abs().max()) == 1
    glucose = rows.inputs[:, FEATURES.index("glucose")]
    assert glucose[rows.targets == 1].mean() > glucose[rows.targets == 0].mean() + 0.2
    assert openml.asked == []
    assert not (project / "data").exists()


def test_course_labels_are_turned_round() -> None:
    rows = DiabetesData(source="course").rows
    values = read_table(COURSE_FILE).to_numpy()
    assert rows.targets.tolist() == [1 - label for label in values[:, -1]]
    assert torch.equal(rows.inputs, torch.from_numpy(values[:, :-1]).float())
    assert (rows.classes, rows.feature_names) == (("not diabetic", "diabetic"), FEATURES)


def test_bundled_needs_no_network_and_no_file(project: Path, openml: "OpenML") -> None:
    data = DiabetesData(source="bundled")
    data.prepare_data()
    assert data.rows.inputs.shape == (442, 10)
    assert int(data.rows.targets.sum()) == 221
    assert data.rows.classes == ("progression below the median", "progression above the median")
    assert openml.asked == []
    assert not (project / "data").exists()


def test_auto_is_the_own_file_then_the_course_file() -> None:
    assert DiabetesData().source == "course"
    assert DiabetesData(file="mine.csv").source == "file"


def test_the_run_says_which_source_auto_came_to(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dlcourse")
    result = dlcourse.train("diabetes", trainer={"max_epochs": 1})
    told = "455 training, 152 validation, 152 test rows of the course's diabetes.csv.gz"
    assert told in caplog.text
    assert told in result.card
    store = dlcourse.open_store()
    run = store.client.get_run(result.run_id)
    assert run.data.params["data.source"] == "course"
    settings = yaml.safe_load((store.files_of(run) / "settings.yaml").read_text())
    assert settings["data"]["source"] == "course"
    assert result.checkpoint is not None
    assert read_checkpoint(Path(result.checkpoint))["datamodule_hyper_parameters"]["source"] == "course"
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {
        "diabetes (training)",
        "diabetes (validation)",
        "diabetes (test)",
    }


def test_own_file_with_and_without_names(tmp_path: Path) -> None:
    rows = [[1.0, 20.0, 2.0], [2.0, 10.0, 1.0], [3.0, 30.0, 2.0]]
    (tmp_path / "plain.csv").write_text(csv(rows))
    (tmp_path / "named.csv").write_text(csv(rows, "age,glucose,outcome"))
    plain, named = (DiabetesData(file=str(tmp_path / f"{name}.csv")).rows for name in ("plain", "named"))
    assert plain.inputs.tolist() == named.inputs.tolist() == [[1, 20], [2, 10], [3, 30]]
    assert plain.targets.tolist() == named.targets.tolist() == [1, 0, 1], "the larger label is class 1"
    assert (plain.feature_names, plain.classes) == (("column 1", "column 2"), ("label 1", "label 2"))
    assert (named.feature_names, named.classes) == (("age", "glucose"), ("outcome 1", "outcome 2"))
    assert plain.digest == named.digest


@pytest.mark.parametrize("labels", [(-1.0, 1.0), (0.0, 1.0), (0.5, 7.0)])
def test_larger_label_is_class_1(tmp_path: Path, labels: tuple[float, float]) -> None:
    low, high = labels
    (tmp_path / "own.csv").write_text(csv([[5.0, high], [6.0, low], [7.0, low]]))
    assert DiabetesData(source="file", file=str(tmp_path / "own.csv")).rows.targets.tolist() == [1, 0, 0]


def test_own_file_is_trained_on(project: Path) -> None:
    (project / "own.csv").write_text(csv(table(features=3), "a,b,c,ill"))
    result = dlcourse.train("diabetes", data={"file": "own.csv"}, trainer={"max_epochs": 2})
    assert result.data is not None
    assert result.data.shape == [3]
    store = dlcourse.open_store()
    run = store.client.get_run(result.run_id)
    assert (run.data.params["data.source"], run.data.params["data.file"]) == ("file", str(project / "own.csv"))
    assert run.info.run_name == "default, data.file=own.csv, max_epochs=2"
    assert (store.files_of(run) / "figures" / "accuracy-curves.png").is_file()


def test_own_file_is_found_again_from_another_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "own.csv").write_text(csv(table(features=3)))
    flags = ["--trainer.max_epochs", "1", "--trainer.patience", "null", "--name", "here"]
    assert main(["train", "diabetes", "--data.file", "own.csv", *flags]) == 0
    (project / "deeper").mkdir()
    monkeypatch.chdir(project / "deeper")
    assert main(["test", "diabetes", "--run", "here"]) == 0
    assert main(["train", "diabetes", "--resume", "here", "--trainer.max_epochs", "2"]) == 0
    assert "diabetes: here (resumed)" in capsys.readouterr().out


def test_a_class_too_rare_for_every_split_costs_no_figure_that_is_not_true(project: Path) -> None:
    """Two rows of twenty: validation and test rows have none of them."""
    (project / "own.csv").write_text(csv(table(20, 2, 3)))
    result = dlcourse.train("diabetes", data={"file": "own.csv"}, trainer={"max_epochs": 2})
    assert result.data is not None
    assert not result.data.rows.targets[result.data.splits["test"]].any()
    assert "test/auroc" not in result.metrics
    assert "test/accuracy" in result.metrics


# Bad input


GOOD = csv(table(20, 10, 2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "own.csv is empty: it must hold rows of numbers, the label last"),
        ("a,b,label\n", "own.csv has a first line of names and no rows below it"),
        (GOOD + "1,much,0\n", "own.csv line 21, column 2: 'much' is no finite number"),
        (GOOD + "nan,2,0\n", "own.csv line 21, column 1: 'nan' is no finite number"),
        ("a,b,label\n" + GOOD + "1,inf,0\n", "own.csv line 22, column 2 (b): 'inf' is no finite number"),
        (GOOD + "1,,0\n", "own.csv line 21, column 2 is missing"),
        (
            GOOD + "1,2,3,0\n",
            "own.csv cannot be read as a CSV file: Error tokenizing data. C error: Expected 3 fields in line 21",
        ),
        (csv([row[:1] for row in table(9)]), "own.csv must have two or more columns, separated by commas, and has 1"),
        (csv(table(20, 20, 2)), "own.csv: every row has the label 1, and two classes are needed"),
        (GOOD + "1,2,3\n", "own.csv: the last column must hold two labels, and holds 3: 0, 1, 3"),
    ],
)
def test_own_file_that_cannot_be_used(project: Path, refused: Refused, content: str, said: str) -> None:
    (project / "own.csv").write_text(content)
    assert refused("--data.file", "own.csv").startswith(f"{project / said}")


def test_own_file_that_is_missing_or_cut_off(project: Path, refused: Refused) -> None:
    assert refused("--data.file", "none.csv").startswith(f"{project / 'none.csv'} cannot be read as a CSV file: No ")
    whole = gzip.compress(GOOD.encode())
    (project / "own.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert refused("--data.file", "own.csv.gz").startswith(f"{project / 'own.csv.gz'} cannot be read as a CSV file: ")


def test_source_and_file_that_contradict_each_other(project: Path, refused: Refused) -> None:
    said = "--data.source file and --data.file PATH go together: give both or neither"
    assert refused("--data.source", "file", status=2) == said
    assert refused("--data.source", "bundled", "--data.file", "own.csv", status=2) == said


def test_class_with_fewer_rows_than_folds(project: Path, refused: Refused) -> None:
    (project / "own.csv").write_text(csv(table(30, 4, 2), "a,b,ill"))
    said = refused("--data.file", "own.csv", "--folds", "5", status=2)
    assert said == "--folds 5 needs as many rows of class ill 1, and there are 4"


# OpenML


@dataclass
class OpenML:
    """A server on this machine that answers as OpenML does for data set 37, in small form, well or badly."""

    address: str = ""
    asked: list[str] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    """How many bytes of an answer are sent before the connection is cut."""
    silent: set[str] = field(default_factory=set)
    """What is not answered until the test is over."""
    over: threading.Event = field(default_factory=threading.Event)

    DATA: ClassVar[str] = "/data/v1/download/37/diabetes.arff"
    DESCRIPTION: ClassVar[str] = "/api/v1/json/data/37"
    FEATURES: ClassVar[str] = "/api/v1/json/data/features/37"
    QUALITIES: ClassVar[str] = "/api/v1/json/data/qualities/37"

    def heal(self) -> None:
        """Answer as it should be."""
        self.status, self.sent = {}, {}
        names = ["preg", "plas", "pres", "skin", "insu", "mass", "pedi", "age", "class"]
        kinds = ["numeric"] * 8 + ["nominal"]
        lines = ["@relation pima_diabetes", *(f"@attribute {name} real" for name in names[:-1])]
        lines += ["@attribute class {tested_negative,tested_positive}", "@data"]
        for row in table():
            lines.append(",".join([*map(str, row[:-1]), "tested_positive" if row[-1] else "tested_negative"]))
        data = "\n".join([*lines, ""]).encode()
        description = {
            "id": "37", "name": "diabetes", "version": "1", "format": "ARFF", "status": "active",
            "url": self.address + self.DATA, "md5_checksum": hashlib.md5(data).hexdigest(),
        }  # fmt: skip
        features = [
            {
                "index": str(place), "name": name, "data_type": kind, "is_target": str(name == "class").lower(),
                "is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0",
            }
            for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]  # fmt: skip
        self.answers = {
            self.DATA: data,
            self.DESCRIPTION: json.dumps({"data_set_description": description}).encode(),
            self.FEATURES: json.dumps({"data_features": {"feature": features}}).encode(),
            self.QUALITIES: json.dumps(
                {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": "60.0"}]}}
            ).encode(),
        }


@pytest.fixture
def openml(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenML]:
    """In OpenML's place, for scikit-learn."""
    theirs = OpenML()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            theirs.asked.append(self.path)
            if self.path in theirs.silent:
                theirs.over.wait()
            content = theirs.answers.get(self.path, b"")
            self.send_response(theirs.status.get(self.path, 200))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: theirs.sent.get(self.path, len(content))])

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        theirs.address = f"http://127.0.0.1:{server.server_port}"
        theirs.heal()
        _in_place_of_openml(theirs.address, monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield theirs
        theirs.over.set()
        server.shutdown()
        thread.join()


def _in_place_of_openml(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    theirs = [name for name, value in vars(_openml).items() if str(value).startswith("https://") and name.isupper()]
    assert theirs, "scikit-learn keeps OpenML's address elsewhere now"
    for name in theirs:
        monkeypatch.setattr(_openml, name, re.sub("^https://[^/]*", address, getattr(_openml, name)))


def pima() -> CourseData:
    data = DiabetesData(source="pima")
    data.prepare_data()
    return data


def files(project: Path) -> list[Path]:
    return sorted(path for path in (project / "data").rglob("*") if path.is_file())


def test_pima_comes_from_openml_once_and_then_from_its_cache(project: Path, openml: OpenML) -> None:
    rows = pima().rows
    assert torch.equal(rows.inputs, torch.tensor(table())[:, :-1])
    assert rows.targets.tolist() == [int(row[-1]) for row in table()], "tested_positive is class 1"
    assert (rows.classes, rows.feature_names) == (("not diabetic", "diabetic"), FEATURES)
    assert "OpenML" in rows.source
    assert files(project) == [project / "data" / "diabetes" / "pima.csv.gz"]
    openml.asked.clear()
    assert pima().rows.digest == rows.digest
    assert openml.asked == []


def test_pima_is_trained_on_and_the_run_says_so(project: Path, openml: OpenML) -> None:
    result = dlcourse.train("diabetes", data={"source": "pima"}, trainer={"max_epochs": 1})
    run = dlcourse.open_store().client.get_run(result.run_id)
    assert run.data.params["data.source"] == "pima"


def cut(path: str, share: float) -> Callable[[OpenML], None]:
    def spoil(openml: OpenML) -> None:
        openml.sent[path] = int(share * len(openml.answers[path]))

    return spoil


def change(path: str, old: bytes, new: bytes) -> Callable[[OpenML], None]:
    def spoil(openml: OpenML) -> None:
        assert old in openml.answers[path]
        openml.answers[path] = openml.answers[path].replace(old, new, 1)

    return spoil


def answer_with(path: str, status: int) -> Callable[[OpenML], None]:
    def spoil(openml: OpenML) -> None:
        openml.status[path] = status

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut(OpenML.DATA, 0.5), "md5 checksum"),
        (cut(OpenML.DATA, 0), "md5 checksum"),
        (change(OpenML.DATA, b"tested_positive\n", b"tested_negative\n"), "md5 checksum"),
        (change(OpenML.DESCRIPTION, b'"md5_checksum": "', b'"md5_checksum": "0'), "md5 checksum"),
        (cut(OpenML.DESCRIPTION, 0.5), "OpenML's response cannot be used: "),
        (cut(OpenML.FEATURES, 0.9), "OpenML's response cannot be used: "),
        (cut(OpenML.QUALITIES, 0), "OpenML's response cannot be used: "),
        (change(OpenML.DESCRIPTION, b"data_set_description", b"error"), "OpenML's response cannot be used: "),
        (answer_with(OpenML.DESCRIPTION, 412), "Dataset with data_id 37 not found"),
        (answer_with(OpenML.DATA, 404), "HTTP Error 404: Not Found"),
    ],
    ids=[
        "data cut", "no data", "data changed", "wrong checksum", "description cut", "features cut", "no qualities",
        "another format", "data set gone", "file gone",
    ],
)  # fmt: skip
def test_download_that_goes_wrong_leaves_nothing_and_the_next_try_works(
    project: Path, openml: OpenML, refused: Refused, spoil: Callable[[OpenML], None], why: str
) -> None:
    spoil(openml)
    said = refused("--data.source", "pima")
    assert why in said
    for way_out in (r"--data\.source course", "bundled", r"--data\.file"):
        assert re.search(way_out, said)
    assert files(project) == []
    openml.heal()
    assert len(pima().rows.targets) == 60


def test_right_checksum_of_another_data_set_is_refused(project: Path, openml: OpenML, refused: Refused) -> None:
    openml.answers[OpenML.DATA] = openml.answers[OpenML.DATA].replace(b"tested_", b"checked_")
    checksum = hashlib.md5(openml.answers[OpenML.DATA]).hexdigest()
    description = json.loads(openml.answers[OpenML.DESCRIPTION])
    description["data_set_description"]["md5_checksum"] = checksum
    openml.answers[OpenML.DESCRIPTION] = json.dumps(description).encode()
    assert "the data set has changed" in refused("--data.source", "pima")
    assert files(project) == []


def test_server_that_keeps_silent_is_given_up(
    openml: OpenML, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diabetes, "PATIENCE_WITH_OPENML", 0.1)
    openml.silent.add(OpenML.DATA)
    assert "timed out" in refused("--data.source", "pima")


def test_no_network_is_one_line_with_the_ways_out(
    project: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_place_of_openml("http://127.0.0.1:9", monkeypatch)  # the port of discard, which nobody serves
    said = refused("--data.source", "pima")
    assert "Connection refused" in said
    for way_out in (r"--data\.source course", "bundled", r"--data\.file"):
        assert re.search(way_out, said)
    assert files(project) == []


def test_earlier_cache_serves_without_openml(project: Path, openml: OpenML, refused: Refused) -> None:
    digest = pima().rows.digest
    content = files(project)[0].read_bytes()
    openml.answers.clear()
    assert pima().rows.digest == digest
    assert files(project)[0].read_bytes() == content


def test_damaged_cache_is_replaced_once_there_is_a_whole_one(project: Path, openml: OpenML, refused: Refused) -> None:
    digest = pima().rows.digest
    cache = files(project)[0]
    damaged = cache.read_bytes()[:-9]
    cache.write_bytes(damaged)
    cut(OpenML.DATA, 0.5)(openml)
    assert "md5 checksum" in refused("--data.source", "pima")
    assert cache.read_bytes() == damaged
    openml.heal()
    assert pima().rows.digest == digest
    assert files(project) == [cache]


def test_cache_that_cannot_be_written_is_named(project: Path, openml: OpenML, refused: Refused) -> None:
    (project / "data").mkdir()
    (project / "data" / "diabetes").write_text("a file where a folder should be")
    said = refused("--data.source", "pima")
    assert re.search(r"pima\.csv\.gz cannot be written \(.*\): make room, or set DLCOURSE_DATA_DIR", said)


# The course's experiments


def final_loss(result: Any) -> float:
    return float(dlcourse.open_store().client.get_run(result.run_id).data.metrics["train/loss"])


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_learns_nothing_and_is_told_so(project: Path, seed: int) -> None:
    result = dlcourse.train("diabetes", config=EXPERIMENTS / "diabetes" / "sigmoid.yaml", seed=seed)
    assert final_loss(result) == pytest.approx(0.6453, abs=0.0015)
    assert result.metrics["train/final_loss"] == pytest.approx(0.6453, abs=0.0015)
    assert result.verdict.sentence == "learned nothing: fits its training rows no better than majority"
    assert result.verdict.learned is False
    assert "not measured: every row was a training row" in result.card


@pytest.mark.slow
def test_relu_learns(project: Path) -> None:
    result = dlcourse.train("diabetes", config=EXPERIMENTS / "diabetes" / "relu.yaml")
    assert final_loss(result) == pytest.approx(0.46, abs=0.015)
    assert result.metrics["train/final_loss"] == pytest.approx(0.46, abs=0.015)
    assert result.verdict.sentence.startswith("fitted: accuracy 0.7")


# Pictures


def drawn(figure: Figure) -> Axes:
    figure.savefig(BytesIO(), format="png")
    (axes,) = figure.axes
    return axes


def legend(axes: Axes) -> list[str]:
    there = axes.get_legend()
    return [text.get_text() for text in there.get_texts()] if there else []


def picture(draw: Callable[..., Figure], probabilities: list[float], labels: list[int]) -> Axes:
    data = data_of(labelled([*labels, 0, 1]), test_fraction=0.0, val_fraction=0.0)
    rows = torch.arange(len(labels))
    data.splits = {"train": rows[:0], "val": rows[:0], "test": rows}
    model = YesOrNo([1], 1)
    outputs = torch.tensor(probabilities).logit()[:, None]
    return drawn(draw(model, data, evaluate_outputs(model, "test", outputs, data.rows.targets[data.splits["test"]])))


# The second of the three positive rows is behind the first negative one: 5 of 6 pairs are in order.
PROBABILITIES, LABELS = [0.9, 0.8, 0.7, 0.4, 0.2], [1, 0, 1, 1, 0]


def test_confusion_matrix_counts_true_by_predicted() -> None:
    axes = picture(figures.confusion_matrix, PROBABILITIES, LABELS)
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1\n50%", (1, 0): "1\n50%", (0, 1): "1\n33%", (1, 1): "2\n67%"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert "test rows" in axes.get_title()


def test_roc_has_its_area() -> None:
    axes = picture(figures.roc_curve, PROBABILITIES, LABELS)
    assert "AUROC 0.667" in legend(axes)
    curve = axes.lines[-1]
    corners = set(zip(np.round(curve.get_xdata(), 3), np.round(curve.get_ydata(), 3), strict=True))
    assert {(0.0, 0.0), (0.0, 0.333), (0.5, 1.0), (1.0, 1.0)} <= corners


def test_precision_and_recall_without_the_point_that_is_made_up() -> None:
    axes = picture(figures.precision_recall_curve, PROBABILITIES, LABELS)
    assert {"chance: share of 1, 0.60", "average precision 0.806"} == set(legend(axes))
    curve = axes.lines[-1]
    assert min(curve.get_xdata()) > 0
    assert max(curve.get_xdata()) == 1


def test_calibration_is_shown_by_fifths_of_the_rows() -> None:
    probabilities = np.linspace(0.05, 0.95, 10).tolist()
    axes = picture(figures.calibration_curve, probabilities, [0, 0, 0, 1, 0, 1, 1, 0, 1, 1])
    (container,) = axes.containers
    points, _, (bars,) = container.lines  # type: ignore[attr-defined]
    assert points.get_xdata() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert points.get_ydata() == pytest.approx([0, 0.5, 0.5, 0.5, 1])
    lengths = [float(segment[1, 1] - segment[0, 1]) for segment in bars.get_segments()]
    assert min(lengths) > 0.1, "two rows of one class are no certainty"
    assert axes.get_ylabel() == "observed share of 1"


@pytest.mark.parametrize("draw", [figures.roc_curve, figures.precision_recall_curve])
def test_rows_of_one_class_have_no_curve(draw: Callable[..., Figure]) -> None:
    axes = picture(draw, [0.9, 0.2], [0, 0])
    assert [text.get_text() for text in axes.texts] == ["every row is of class 0"]
    assert not axes.lines


@pytest.mark.parametrize("draw", [figures.confusion_matrix, figures.calibration_curve])
def test_rows_of_one_class_can_be_drawn(draw: Callable[..., Figure]) -> None:
    picture(draw, [0.9, 0.2], [1, 1])
    picture(draw, [0.9], [1])
