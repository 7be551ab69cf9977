"""Predictions: those of the run's checkpoint, from pictures, tables and numbers; and nothing in a file is run."""

import json
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.data import bundled
from dlcourse.data.datamodule import CourseData
from dlcourse.export.exporting import export
from dlcourse.export.formats import read_safetensors
from dlcourse.export.predict import MOST_PICTURES
from dlcourse.images.decoding import decoded
from dlcourse.topics.diabetes import FEATURES
from dlcourse.training.checkpoints import load_checkpoint
from tests.conftest import ROOT, not_into_files, shared_project
from tests.examples import block
from tests.image_sets import write_image_folder, write_pictures
from tests.samples import YesOrNo, data_of, two_classes

pytestmark = [
    pytest.mark.slow,
    # onnxscript and torch.onnx, of their own code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript.*"),
]
Capture = pytest.CaptureFixture[str]
FLOAT = 1e-5


def a_part_of(read: Callable[[str, int], dict[str, Tensor]]) -> Callable[[str, int], dict[str, Tensor]]:
    """`read_sample` with each 20th image: 250 and 50 of FashionMNIST."""
    return lambda name, classes: {key: tensor[::20] for key, tensor in read(name, classes).items()}


def train_each() -> dict[str, dlcourse.Result]:
    few = {"max_epochs": 2, "patience": None}
    small = {"widths": [8, 8, 8], "compile": False}
    return {
        "line": dlcourse.train("height-weight", trainer=few),
        "table": dlcourse.train("height-weight", config="table", trainer=few, name="table"),
        "diabetes": dlcourse.train("diabetes", trainer=few),
        "clothes": dlcourse.train("fashion-mnist", config="sample", model=small, trainer=few, name="sample"),
        "insects": dlcourse.train(
            "image-folder", data={"size": 16}, model={"widths": [8, 8], "compile": False}, trainer=few, name="default"
        ),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[dict[str, dlcourse.Result]]:
    """A run of each kind of model, and the folder ``exports`` with some of them as files; it is the current folder."""
    with shared_project(tmp_path_factory, made_store) as folder, pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLCOURSE_DATA_DIR", raising=False)
        patch.setattr(bundled, "read_sample", a_part_of(bundled.read_sample))
        write_image_folder(folder / "data", patch)
        with pytest.MonkeyPatch.context() as quick:
            quick.setattr(Figure, "savefig", not_into_files(Figure.savefig))
            runs = train_each()
        for topic, run in {"diabetes": "diabetes", "fashion-mnist": "clothes"}.items():
            for form in ("safetensors", "checkpoint", "onnx"):
                export(topic, run=runs[run].run_id, format=form)
        yield runs


def predicted(capsys: Capture, *words: object, status: int = 0) -> dict[str, Any]:
    """What ``dlcourse predict ... --json`` prints on stdout."""
    capsys.readouterr()
    assert main(["predict", *map(str, words), "--json"]) == status
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def shown(capsys: Capture, *words: object, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == status
    return capsys.readouterr().out


def refused(capsys: Capture, *words: object, status: int = 2) -> str:
    """The one line of a command that must be refused, and that has written nothing."""
    before = set(Path().iterdir())
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dlcourse: "), err
    assert err.count("\n") == 1, err
    assert set(Path().iterdir()) == before
    return err.strip()


def probabilities(content: dict[str, Any]) -> Tensor:
    return torch.tensor([list(each["probabilities"].values()) for each in content["predictions"]])


def of_checkpoint(topic: str, result: dlcourse.Result, rows: int = 5) -> tuple[Tensor, Tensor]:
    """The first test rows of a run, and what its checkpoint predicts for them: N x classes, or N x columns."""
    model, data = load_checkpoint(topics.find(topic), Path(str(result.checkpoint)))
    assert isinstance(data, CourseData)
    data.prepare_data()
    data.setup("test")
    inputs = data.rows.inputs[data.splits[data.eval_split][:rows]]
    with torch.no_grad():
        outputs = model.float()(inputs)
    if topic == "height-weight":
        return inputs, outputs
    if topic == "diabetes":
        return inputs, torch.cat([1 - outputs.sigmoid(), outputs.sigmoid()], 1)
    return inputs, outputs.softmax(1)


def write_csv(path: Path, rows: Tensor, names: list[str] | None = None) -> Path:
    pd.DataFrame(rows.numpy()).to_csv(path, header=names or False, index=False)
    return path


# --- tables and numbers ---


def test_a_csv_file_is_predicted_as_by_the_checkpoint(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"])
    content = predicted(capsys, "diabetes", write_csv(tmp_path / "rows.csv", rows))
    assert torch.allclose(probabilities(content), expected, atol=FLOAT)
    assert list(content["predictions"][0]["probabilities"]) == ["not diabetic", "diabetic"]
    assert content["model"] == "diabetes"
    assert content["run"]["id"] == trained["diabetes"].run_id
    assert "the best of 1" in content["run"]["why"]
    assert content["quality"]["metric"] == "test/accuracy"
    assert content["warnings"] == []
    assert [each["input"] for each in content["predictions"][:2]] == [f"{tmp_path}/rows.csv line {n}" for n in (1, 2)]


def test_columns_are_taken_by_name(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"])
    table = pd.DataFrame(rows.numpy(), columns=[name.replace(" ", "_") for name in FEATURES])
    table = table[table.columns[::-1]].assign(who="ada")
    table.to_csv(tmp_path / "rows.csv", index=False)
    assert torch.allclose(probabilities(predicted(capsys, "diabetes", tmp_path / "rows.csv")), expected, atol=FLOAT)


def test_one_row_is_given_by_flags(trained: Any, capsys: Capture) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"], 1)
    flags = [f"--{name.replace(' ', '_')}={value}" for name, value in zip(FEATURES, rows[0].tolist(), strict=True)]
    assert torch.allclose(probabilities(predicted(capsys, "diabetes", *flags)), expected, atol=FLOAT)
    from_python = dlcourse.predict("diabetes", features=dict(zip(FEATURES, rows[0].tolist(), strict=True)))
    assert torch.allclose(torch.from_numpy(from_python.values), expected, atol=FLOAT)


def test_numbers_for_a_model_of_one_input(trained: Any, capsys: Capture) -> None:
    rows, expected = of_checkpoint("height-weight", trained["line"], 3)
    content = predicted(capsys, "height-weight", "--run", trained["line"].run_id, *rows[:, 0].tolist(), "-1e-3")
    values = [each["values"]["weight"] for each in content["predictions"]]
    assert torch.allclose(torch.tensor([each["value"] for each in values[:3]]), expected[:, 0], rtol=FLOAT)
    assert content["predictions"][3]["input"] == "height -0.001"
    assert values[0]["error"] > 0
    text = shown(capsys, "height-weight", "--run", trained["line"].run_id, 1)
    assert f"± {values[0]['error']:.3g}" in text
    assert "95 %" in text


def test_units_and_unknown_errors_are_told(trained: Any, capsys: Capture) -> None:
    text = shown(capsys, "height-weight", "--run", "table", "--height", 176)
    assert "height 176 cm" in text
    assert " kg" in text
    assert "±" not in text
    assert "not known" in text
    assert "train/final_mse" in text
    assert "trained on" in text
    heights, weights = of_checkpoint("height-weight", trained["table"], 1)
    (values,) = predicted(capsys, "height-weight", "--run", "table", heights.item())["predictions"]
    expected = weights.item()
    assert values["values"]["weight"] == {"value": pytest.approx(expected, rel=FLOAT), "unit": "kg", "error": None}


def test_values_outside_the_training_rows_are_told(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, _ = of_checkpoint("diabetes", trained["diabetes"])
    rows[:, 1] = torch.tensor([0.0, 120, 0, 90, -50])
    told = predicted(capsys, "diabetes", write_csv(tmp_path / "rows.csv", rows))["warnings"]
    assert told[0].startswith("glucose: 3 of 5 rows are outside ")
    assert "--data.source course" in told[1]
    (warning, _) = predicted(capsys, "height-weight", "--run", "table", "--height", 250)["warnings"]
    assert warning.startswith("height 250 cm is outside 160 to 180 cm")
    assert predicted(capsys, "height-weight", "--run", "table", "--height", 160)["warnings"] == []


def test_other_names_in_a_csv_file_are_told(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("height in m\n1.76\n")
    told = predicted(capsys, "height-weight", "--run", "table", tmp_path / "rows.csv")["warnings"]
    assert "'height in m' as height in cm" in told[0]


def test_csv_has_all_probabilities_or_values(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"])
    shown(capsys, "diabetes", write_csv(tmp_path / "rows.csv", rows), "--csv", tmp_path / "out.csv", "--top", 1)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table) == ["input", "class", "not diabetic", "diabetic"]
    assert np.allclose(table[["not diabetic", "diabetic"]], expected, atol=FLOAT)
    assert (table["class"] == np.where(expected[:, 1] > 0.5, "diabetic", "not diabetic")).all()
    shown(capsys, "height-weight", "--run", "table", "176", "--csv", tmp_path / "out.csv")
    assert list(pd.read_csv(tmp_path / "out.csv")) == ["input", "weight in kg"]
    shown(capsys, "height-weight", "--run", trained["line"].run_id, "1", "--csv", tmp_path / "out.csv")
    assert list(pd.read_csv(tmp_path / "out.csv")) == ["input", "weight", "error of weight"]


def test_top_is_how_many_classes_are_shown(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"], 1)
    write_csv(tmp_path / "rows.csv", rows)
    line = shown(capsys, "diabetes", tmp_path / "rows.csv", "--top", "1").splitlines()[1]
    assert line.count("%") == 1
    assert f"{expected.max():.1%}" in line
    assert shown(capsys, "diabetes", tmp_path / "rows.csv").splitlines()[1].count("%") == 2


# --- pictures ---


def write_clothes(folder: Path, images: Tensor) -> list[Path]:
    """1 x 28 x 28 each, as grey PNG files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:02}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def test_pictures_are_predicted_as_by_the_checkpoint(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    images, expected = of_checkpoint("fashion-mnist", trained["clothes"])
    paths = write_clothes(tmp_path, images)
    content = predicted(capsys, "fashion-mnist", "--run", "sample", *paths)
    assert torch.allclose(probabilities(content), expected, atol=FLOAT)
    assert [each["input"] for each in content["predictions"]] == [str(path) for path in paths]
    assert torch.allclose(probabilities(predicted(capsys, "fashion-mnist", "--run", "sample", tmp_path)), expected)


def test_inverted_pictures(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    images, expected = of_checkpoint("fashion-mnist", trained["clothes"])
    path, *_ = write_clothes(tmp_path, 255 - images)
    content = predicted(capsys, "fashion-mnist", "--run", "sample", path)
    assert "--invert" in content["warnings"][0]
    assert str(path) in content["warnings"][0]
    content = predicted(capsys, "fashion-mnist", "--run", "sample", "--invert", path)
    assert torch.allclose(probabilities(content), expected[:1], atol=FLOAT)
    assert content["warnings"] == []
    path, *_ = write_clothes(tmp_path, images)
    assert "leave --invert out" in predicted(capsys, "fashion-mnist", path, "--run=sample", "--invert")["warnings"][0]


def test_a_folder_in_order_and_of_any_size(trained: Any, capsys: Capture) -> None:
    images, expected = of_checkpoint("image-folder", trained["insects"], 20)
    content = predicted(capsys, "image-folder", "--run=default", "data/hymenoptera/val")
    assert len(images) == len(content["predictions"]) == 20
    names = [each["input"] for each in content["predictions"]]
    assert names == sorted(names)
    assert torch.allclose(probabilities(content), expected, atol=FLOAT)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_predicted(
    trained: Any, capsys: Capture, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures" / "within", 3)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture, and not named like one")
    arguments = ["image-folder", "--run=default", tmp_path / "pictures", "--csv", tmp_path / "out.csv"]
    content = predicted(capsys, *arguments, status=1)
    assert content["unread"] == [str(tmp_path / "pictures" / "broken.png")]
    assert len(content["predictions"]) == len(pd.read_csv(tmp_path / "out.csv")) == 3
    assert "broken.png" in shown(capsys, *arguments, status=1)


def test_plot_shows_what_the_model_sees(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "pictures", MOST_PICTURES + 2)
    for suffix in ("png", "pdf"):
        shown(capsys, "image-folder", "--run=default", paths[0], "--plot", tmp_path / f"plot.{suffix}")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
    predictions = dlcourse.predict("image-folder", [tmp_path / "pictures"], run="default")
    figure = predictions.figure()
    assert len(figure.axes) == MOST_PICTURES
    assert f"{MOST_PICTURES} of {len(paths)}" in figure.get_suptitle()
    seen = figure.axes[1].get_images()[0].get_array()
    assert np.array_equal(seen, decoded(paths[1], 16).permute(1, 2, 0))
    name, prediction = figure.axes[1].get_title().split("\n")
    assert name == "001.png"
    assert prediction.startswith(predictions.as_dict()["predictions"][1]["class"])


# --- which model ---


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "onnx"])
def test_a_file_predicts_as_its_run(trained: Any, capsys: Capture, tmp_path: Path, suffix: str) -> None:
    rows, expected = of_checkpoint("diabetes", trained["diabetes"])
    content = predicted(capsys, f"exports/diabetes.{suffix}", write_csv(tmp_path / "rows.csv", rows))
    assert torch.allclose(probabilities(content), expected, atol=FLOAT)
    assert content["run"]["id"] == trained["diabetes"].run_id
    assert f"exports/diabetes.{suffix}" in content["run"]["why"]
    images, expected = of_checkpoint("fashion-mnist", trained["clothes"])
    content = predicted(capsys, f"exports/fashion-mnist.{suffix}", *write_clothes(tmp_path, images))
    assert torch.allclose(probabilities(content), expected, atol=FLOAT)


def test_the_champion_is_taken_and_else_the_best(project: Path, capsys: Capture) -> None:
    train = {"max_epochs": 2, "patience": None}
    better = dlcourse.train("height-weight", trainer=train, model={"lr": 0.1})
    worse = dlcourse.train("height-weight", trainer=train, model={"lr": 0.001})
    content = predicted(capsys, "height-weight", "1")
    assert content["run"]["id"] == better.run_id
    assert "best of 2" in content["run"]["why"]
    dlcourse.promote("height-weight", worse.run_id)
    content = predicted(capsys, "height-weight", "1")
    assert content["run"]["id"] == worse.run_id
    assert "champion" in content["run"]["why"]
    assert predicted(capsys, "height-weight", "1", "--run", better.run_id)["run"]["id"] == better.run_id
    dlcourse.open_store().client.delete_run(worse.run_id)
    assert "--run" in refused(capsys, "height-weight", "1", status=1)


def test_an_experiment_of_ones_own(project: Path, capsys: Capture, tmp_path: Path) -> None:
    data = data_of(two_classes())
    data.setup("fit")
    result = dlcourse.train_module(
        YesOrNo([5], 1), data, task=YesOrNo([5], 1), experiment="mine", trainer={"max_epochs": 2}
    )
    rows = data.rows.inputs[:3]
    content = predicted(capsys, "mine", write_csv(tmp_path / "rows.csv", rows))
    with torch.no_grad():
        expected = result.model.cpu()(rows).sigmoid()
    assert torch.allclose(probabilities(content)[:, 1:], expected, atol=FLOAT)
    assert "5" in refused(capsys, "mine", "3")


# --- what is refused ---

REFUSED = {
    "height-weight": "nothing to predict",
    "height-weight nan": "finite",
    "height-weight 1e39": "finite",
    "height-weight --height inf": "--height",
    "height-weight --height tall": "--height",
    "height-weight --height": "--height",
    "height-weight --heigth 3": "did you mean --height?",
    "height-weight --plto x.png 3": "did you mean --plot?",
    "height-weight 3 --plot x.png": "--plot",
    "height-weight 3 --invert": "--invert",
    "height-weight 3 --top 0": "--top",
    "height-weight 3 --csv nowhere/x.csv": "--csv",
    "height-weight 3 --csv data": "--csv",
    "height-weight nowhere.csv": "nowhere.csv",
    "height-weight data": "data",
    "height-weight data/hymenoptera/val/ants/000.png": "picture",
    "heigth-weight 3": "did you mean height-weight?",
    "diabetes 3": "--glucose",
    "diabetes --glucose 3 --age 3": "--pregnancies",
    "fashion-mnist --run sample": "nothing to predict",
    "fashion-mnist --run sample 3": "picture",
    "fashion-mnist --run sample --height 3": "--height",
    "image-folder --run default data/hymenoptera/val/ants/000.png --plot nowhere/x.png": "--plot",
    "image-folder --run default data/hymenoptera/val/ants/000.png --plot x.xyz": "--plot",
    "exports/diabetes.pt2 3": "pt2",
    "exports/nowhere.onnx 3": "nowhere.onnx",
    "exports/diabetes.onnx 3 --run table": "--run",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_commands_that_cannot_be_taken(trained: Any, capsys: Capture, words: str) -> None:
    assert REFUSED[words] in refused(capsys, *words.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,2,3\n", "takes 8"),
        ("1,2,3,4,5,6,7,8,0\n", "takes 8"),
        ("1,2,3,4,5,6,7,many\n", "line 1, column 8: 'many'"),
        ("1,2,3,4,5,6,7,nan\n", "line 1, column 8: 'nan'"),
        ("1,2,3,4,5,6,7,inf\n", "line 1, column 8: 'inf'"),
        ("1,2,3,4,5,6,7,\n", "line 1, column 8 is missing"),
        ("", "is empty"),
        ("pregnancies,glukose,c,d,e,f,g,h\n1,2,3,4,5,6,7,8\n", "did you mean glukose?"),
    ],
)
def test_tables_that_cannot_be_taken(trained: Any, capsys: Capture, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    assert said in refused(capsys, "diabetes", tmp_path / "rows.csv", "--csv", tmp_path / "out.csv", status=1)
    assert not (tmp_path / "out.csv").exists()


def test_pictures_that_cannot_be_taken(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "image-folder", "--run=default", tmp_path / "empty", status=1)
    whole = Path("data/hymenoptera/val/ants/000.png").read_bytes()
    for name, content in {"cut.png": whole[: len(whole) // 2], "text.png": b"text", "rows.csv": b"1,2\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(
            capsys, "image-folder", "--run=default", tmp_path / name, "--plot", tmp_path / "plot.png", status=1
        )
    assert not (tmp_path / "plot.png").exists()


def test_an_input_is_not_written_over(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    rows, _ = of_checkpoint("diabetes", trained["diabetes"])
    path = write_csv(tmp_path / "rows.csv", rows)
    before = path.read_bytes()
    assert "--csv" in refused(capsys, "diabetes", path, "--csv", path)
    assert path.read_bytes() == before


# --- files from anybody ---


class Code:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors", "onnx"])
def test_no_code_in_a_file_is_run(trained: Any, capsys: Capture, tmp_path: Path, suffix: str) -> None:
    ran, file = tmp_path / "it ran", tmp_path / f"model.{suffix}"
    with file.open("wb") as stream:
        pickle.dump(Code(ran), stream)
    refused(capsys, file, "3", status=1)
    torch.save({"state_dict": {}, "dlcourse": Code(ran)}, file)
    refused(capsys, file, "3", status=1)
    with zipfile.ZipFile(file, "w") as pt2:  # as torch.export.save has it, with a pickle where the weights are
        pt2.writestr("archive/archive_format", "pt2")
        pt2.writestr("archive/data/weights/model.pt", pickle.dumps(Code(ran)))
        pt2.writestr("archive/data.pkl", pickle.dumps(Code(ran)))
    refused(capsys, file, "3", status=1)
    with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(file))
    refused(capsys, file, "3", status=1)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors", "onnx"])
def test_files_that_are_cut_off(trained: Any, capsys: Capture, tmp_path: Path, suffix: str) -> None:
    whole = Path(f"exports/diabetes.{suffix}").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:length])
        assert f"cut.{suffix}" in refused(capsys, tmp_path / f"cut.{suffix}", "3", status=1)


def test_an_onnx_file_reads_no_other_file(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    """By default onnxruntime looks for the tensors of a model without a path in the current folder."""
    whole, file = onnx.load("exports/diabetes.onnx"), tmp_path / "model.onnx"
    flags = [f"--{name.replace(' ', '_')}=0" for name in FEATURES]

    def write_with(weight: TensorProto) -> None:
        node = helper.make_node("MatMul", ["inputs", "w"], ["probabilities"])
        graph = helper.make_graph([node], "g", whole.graph.input, whole.graph.output[:1], [weight])
        model = helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)
        model.metadata_props.extend(whole.metadata_props)
        file.write_bytes(model.SerializeToString())

    write_with(helper.make_tensor("w", TensorProto.FLOAT, [8, 2], bytes(64), raw=True))
    assert shown(capsys, file, *flags)
    Path("weights.bin").write_bytes(bytes(64))
    for location in ("weights.bin", "../../etc/passwd", "/etc/passwd"):
        outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 2], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": "0", "length": "64"}.items():
            outside.external_data.add(key=key, value=value)
        write_with(outside)
        assert "model.onnx" in refused(capsys, file, *flags, status=1)
    Path("weights.bin").unlink()


def test_files_that_lie(trained: Any, capsys: Capture, tmp_path: Path) -> None:
    content = read_safetensors(Path("exports/diabetes.safetensors"))
    description = json.loads(content["dlcourse"])

    def lying(**changes: Any) -> Path:
        save_file(content["state_dict"], tmp_path / "lies.safetensors", {"dlcourse": json.dumps(description | changes)})
        return tmp_path / "lies.safetensors"

    one = {**description["inputs"], "shape": ["N", 1], "columns": [{"name": "height"}]}
    assert "does not take" in refused(capsys, lying(inputs=one), "3", status=1)
    flags = [f"--{each['name'].replace(' ', '_')}=0" for each in description["inputs"]["columns"]]
    assert "gives 2 numbers" in refused(capsys, lying(classes=["a", "b", "c"]), *flags, status=1)
    assert "lies" in refused(capsys, lying(topic="height-weight"), *flags, status=1)
    assert "ask for the model as ONNX" in refused(capsys, lying(topic="nobody's"), *flags, status=1)
    out = shown(capsys, lying(classes=["\x1b[2Ja", "b"]), *flags)
    assert "\x1b" not in out
    assert "?[2Ja" in out


# --- the page ---


def test_commands_of_the_page(trained: Any, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dlcourse ")]
    rows, _ = of_checkpoint("diabetes", trained["diabetes"])
    images, _ = of_checkpoint("fashion-mnist", trained["clothes"], 1)
    for folder in ("mlruns", "exports", "data"):
        (tmp_path / folder).symlink_to(Path(folder).absolute())
    monkeypatch.chdir(tmp_path)
    write_csv(Path("patients.csv"), rows)
    write_pictures(Path("pictures"), 3)
    write_clothes(Path(), 255 - images)[0].rename("boot.png")
    assert len(commands) > 5
    for words in commands:
        assert main(words) == 0, words
    assert Path("seen.png").is_file()
    assert Path("probabilities.csv").is_file()
    exec(compile(block("docs/predict.md", "example: predict"), "predict.md", "exec"), {})
    assert "height 176 cm" in capsys.readouterr().out
