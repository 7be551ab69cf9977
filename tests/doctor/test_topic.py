"""What is wrong with a topic is found and named in one line; what is right is left in peace."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows, Split
from dlcourse.doctor.findings import Finding
from dlcourse.doctor.topic import check_gradients, check_topic, numerical_gradient
from dlcourse.errors import SettingsError
from dlcourse.evaluation import baselines
from dlcourse.models.base import CourseModel
from dlcourse.models.tasks import BinaryClassifier, Classifier, Regressor
from dlcourse.topics import Topic
from tests import samples
from tests.conftest import EXPERIMENTS

TABLE = EXPERIMENTS / "height-weight" / "table.yaml"


class Points(CourseData):
    def load(self) -> Rows:
        return samples.two_classes()


class Network(BinaryClassifier):
    """What the sick networks here are made of: a layer in the middle, and so many dead units."""

    middle: ClassVar[type[nn.Module]] = nn.Identity
    dead: ClassVar[int] = 0

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        hidden = nn.Linear(shape[0], 16)
        nn.init.constant_(hidden.bias[: self.dead], -1000)
        self.network = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(0.5), self.middle(), nn.Linear(16, outputs))


def topic_of(model: type[CourseModel] = Network, data: type[CourseData] = Points) -> Topic:
    return Topic("sick", "A topic made for a test", data, model, {"majority": baselines.majority})


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all("\n" not in str(finding) for finding in findings)
    return [(finding.name, str(finding)) for finding in findings if not finding.ok]


def complaint(model: type[CourseModel] = Network, data: type[CourseData] = Points, **settings: Any) -> tuple[str, str]:
    """The one thing that is wrong."""
    (found,) = wrong(check_topic(topic_of(model, data), **settings))
    return found


class TestNumericalGradient:
    def test_of_the_notes_function(self) -> None:
        gradient = numerical_gradient(lambda at: 3 * (at[0] + at[1] * at[2]), [5.0, 3.0, 2.0])
        torch.testing.assert_close(gradient, torch.tensor([3.0, 6.0, 9.0], dtype=torch.float64))

    def test_of_the_notes_squared_error(self) -> None:
        gradient = numerical_gradient(lambda at: (at[0] * 5 + at[1] - 0) ** 2, [1.0, 3.0])
        torch.testing.assert_close(gradient, torch.tensor([80.0, 16.0], dtype=torch.float64))

    def test_has_the_shape_of_the_point_and_agrees_with_autograd(self) -> None:
        at = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T.requires_grad_()

        def function(matrix: Tensor) -> Tensor:
            return (matrix.sin() @ matrix.T).exp().sum()

        torch.autograd.backward(function(at))
        torch.testing.assert_close(numerical_gradient(function, at), at.grad, rtol=1e-7, atol=0)

    @pytest.mark.parametrize(("place", "slope"), [(-3e-7, 0.35), (3e-7, 0.65)])
    def test_is_between_both_slopes_at_a_kink(self, place: float, slope: float) -> None:
        assert float(numerical_gradient(torch.relu, torch.tensor(place))) == pytest.approx(slope)


class TestHealthyTopics:
    @pytest.mark.parametrize("flags", [["height-weight"], ["diabetes", "--data.source", "bundled"]])
    def test_of_the_course(self, flags: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(project.rglob("*"))
        assert main(["doctor", *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["ok", name] for name in ("data", "split", "shapes", "gradients", "units")
        ]
        assert sorted(project.rglob("*")) == before

    def test_with_settings_as_in_training(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "height-weight", "--config", str(TABLE), "--data.val_fraction", "0.2", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        texts = {finding["name"]: finding["text"] for finding in result["findings"]}
        assert result["ok"]
        assert texts["data"] == "5 rows of [1], from the course's table"
        assert texts["split"] == "4 train, 1 val, 0 test rows, disjoint and complete"

    def test_each_with_the_figure_reached(self) -> None:
        texts = {finding.name: finding.text for finding in check_topic(topic_of())}
        assert texts["split"].startswith("90 train, 30 val, 30 test rows, disjoint and complete, each class within 0.")
        assert texts["shapes"].startswith("a batch of [32, 5] gives outputs of [32, 1] and a loss of 0.")
        assert texts["gradients"].startswith(
            "up to 4 entries of each of 4 tensors agree with the central difference, to "
        )
        assert float(texts["gradients"].split()[-4]) < 1e-6
        assert texts["units"].startswith("0 of 16 ReLU units are 0 for every training row after one epoch")

    def test_of_images(self) -> None:
        class Digits(CourseData):
            def load(self) -> Rows:
                images, labels = load_digits(return_X_y=True)
                inputs = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
                return Rows(inputs[:500], torch.from_numpy(labels[:500]), "digits", classes=tuple("0123456789"))

        class Convolution(Classifier):
            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                convolution = nn.Conv2d(shape[0], 8, 3)
                assert convolution.bias is not None
                nn.init.constant_(convolution.bias[:2], -1000)
                layers = [
                    convolution,
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(2),
                    nn.BatchNorm2d(8),
                    nn.Dropout(),
                    nn.Flatten(),
                ]
                self.network = nn.Sequential(*layers, nn.Linear(72, outputs))

        findings = check_topic(topic_of(Convolution, Digits))
        assert wrong(findings) == []
        assert findings[0].text == "500 rows of [1, 8, 8], from digits"
        assert findings[-1].text.startswith("2 of 8 ReLU units are 0")
        assert findings[-1].text.endswith(": 2 of network.1 (8)")
        assert findings[-1].remedy.startswith("lower --model.lr")


class TestRowsAndSplits:
    @staticmethod
    def split_into(train: Any, val: Any, test: Any) -> type[CourseData]:
        parts: dict[Split, Tensor] = {"train": train, "val": val, "test": test}
        return type("Split", (Points,), {"splits": parts})

    def test_overlapping(self) -> None:
        data = self.split_into(torch.arange(90), torch.arange(80, 120), torch.arange(120, 150))
        name, said = complaint(data=data)
        assert name == "split"
        assert "90 train, 40 val, 30 test rows: 10 rows are both train and val rows; look at" in said

    def test_incomplete(self) -> None:
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        assert (
            "7 of 150 rows are in no split"
            in complaint(data=self.split_into(order[:83], order[90:120], order[120:]))[1]
        )

    def test_cut_from_sorted_rows(self) -> None:
        order = samples.two_classes().targets.argsort()
        name, said = complaint(data=self.split_into(order[:90], order[90:120], order[120:]))
        assert name == "split"
        assert "each class within 28 rows of its share" in said
        assert said.endswith("; split each class by itself")

    def test_dealt_out_without_regard_to_classes_is_worth_a_thought_and_no_fault(self) -> None:
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        findings = check_topic(topic_of(data=self.split_into(order[:90], order[90:120], order[120:])))
        assert wrong(findings) == []
        assert findings[1].mark == "note"
        assert findings[1].remedy == "split each class by itself"

    def test_inputs_that_are_no_numbers(self) -> None:
        class Holes(CourseData):
            def load(self) -> Rows:
                rows = samples.two_classes()
                rows.inputs[3, 2:4] = torch.tensor([float("nan"), float("inf")])
                return rows

        assert complaint(data=Holes) == ("data", "2 of the inputs are no finite numbers")

    def test_fewer_targets_than_inputs(self) -> None:
        class Short(CourseData):
            def load(self) -> Rows:
                rows = samples.two_classes()
                return Rows(rows.inputs, rows.targets[:140], "made for a test", classes=rows.classes)

        assert complaint(data=Short) == ("data", "150 rows of inputs and 140 of targets")

    def test_data_that_cannot_be_loaded(self) -> None:
        class Broken(CourseData):
            def load(self) -> Rows:
                raise ZeroDivisionError("division\nby zero")

        assert complaint(data=Broken) == ("data", "ZeroDivisionError: division by zero")


class TestShapes:
    def test_too_many_outputs(self) -> None:
        class Wide(BinaryClassifier):
            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                self.network = nn.Linear(shape[0], outputs + 1)

        name, said = complaint(Wide)
        assert name == "shapes"
        assert said.startswith("a batch of [32, 5] gives outputs of [32, 2] instead of [32, 1]; look at")

    def test_a_column_that_was_squeezed_away(self) -> None:
        class Numbers(CourseData):
            def load(self) -> Rows:
                return samples.numbers()

        class Squeezed(Regressor):
            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                self.network = nn.Sequential(nn.Linear(shape[0], 1), nn.Flatten(0))

        name, said = complaint(Squeezed, Numbers)
        assert name == "shapes"
        assert "gives outputs of [30] instead of [30, 1]" in said

    def test_layers_that_do_not_fit_together(self) -> None:
        class Unfit(BinaryClassifier):
            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                self.network = nn.Sequential(nn.Linear(shape[0], 3), nn.Linear(4, outputs))

        name, said = complaint(Unfit)
        assert name == "shapes"
        assert said.startswith("RuntimeError: ")
        assert "shapes cannot be multiplied (32x3 and 4x1)" in said


class HalfOfSquare(torch.autograd.Function):
    """x² whose backward forgets the 2."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        inputs: Tensor = ctx.saved_tensors[0]
        return gradients[0] * inputs


class Kink(nn.Module):
    """x + relu(weight - kink), with a kink that lies ``distance`` beside the weight at the first pass."""

    distance = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.kink: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kink is None:
            self.kink = self.weight.detach() + self.distance
        return inputs + (self.weight - self.kink).relu()


class Square(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return HalfOfSquare.apply(inputs)  # type: ignore[no-any-return]


class TestGradients:
    def test_a_wrong_backward(self) -> None:
        name, said = complaint(type("Wrong", (Network,), {"middle": Square}))
        assert name == "gradients"
        assert said.startswith("wrong in 2 of 4 tensors, the last of them network.0.bias: autograd says ")
        assert said.endswith("; look at the backward of what follows network.0.bias")
        by_autograd, by_difference = (float(word.rstrip(",;")) for word in said.split() if word[-2:-1].isdigit())
        assert by_difference == pytest.approx(2 * by_autograd, rel=1e-3)

    def test_a_wrong_backward_behind_a_layer_of_zeros(self) -> None:
        class Zeros(Network):
            middle = Square

            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                nn.init.zeros_(self.get_parameter("network.4.weight"))

        assert complaint(Zeros)[1].startswith("wrong in 2 of 4 tensors")

    def test_a_layer_cut_off_by_mistake(self) -> None:
        class Detached(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return inputs.detach()

        name, said = complaint(type("Cut", (Network,), {"middle": Detached}))
        assert name == "gradients"
        assert "network.0.bias: autograd says 0, the central difference" in said

    @pytest.mark.parametrize("distance", [-3e-7, 3e-7])
    def test_a_kink_within_the_step_is_no_error(self, distance: float) -> None:
        kink = type("Near", (Kink,), {"distance": distance})
        data = Points()
        model = type("Kinked", (Network,), {"middle": kink})(data.shape, data.outputs)
        found = check_gradients(model, data)
        assert found.ok, found
        assert "each of 5 tensors" in found.text

    def test_what_a_model_draws_at_random_is_no_error(self) -> None:
        class Draws(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return inputs * torch.rand_like(inputs)

        data = Points()
        model = type("Random", (Network,), {"middle": Draws})(data.shape, data.outputs)
        state = torch.get_rng_state()
        found = check_gradients(model, data)
        assert found.ok, found
        assert torch.equal(state, torch.get_rng_state())

    def test_dropout_is_off(self) -> None:
        class NotInTraining(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                assert not self.training
                return inputs

        data = Points()
        assert check_gradients(type("Off", (Network,), {"middle": NotInTraining})(data.shape, data.outputs), data).ok

    def test_the_model_stays_as_it_was(self) -> None:
        data = Points()
        model = Network(data.shape, data.outputs)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        check_gradients(model, data)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert model.training


class TestUnits:
    def test_a_dead_layer(self) -> None:
        name, said = complaint(type("Dead", (Network,), {"dead": 16}))
        assert name == "units"
        assert said.startswith("16 of 16 ReLU units are 0 for every training row after one epoch")
        assert ": 16 of network.1 (16); lower --model.lr" in said

    def test_some_dead_units_are_worth_a_thought_and_no_fault(self) -> None:
        found = check_topic(topic_of(type("PartlyDead", (Network,), {"dead": 3})))[-1]
        assert (found.name, found.mark) == ("units", "note")
        assert found.text.startswith("3 of 16 ReLU units are 0")

    def test_a_unit_that_fires_for_a_few_rows_only_is_alive(self) -> None:
        class Few(CourseData):
            def load(self) -> Rows:
                inputs = torch.where(torch.arange(3000) < 5, 1.0, -1.0)[:, None]
                return Rows(inputs, torch.arange(3000) % 2, "made for a test", classes=("even", "odd"))

        class ByTheSign(Network):
            def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
                super().__init__(shape, outputs, **settings)
                nn.init.zeros_(self.get_parameter("network.0.bias"))

        all_rows = {"val_fraction": 0, "test_fraction": 0}
        findings = check_topic(topic_of(ByTheSign, Few), data=all_rows, model={"lr": 1e-6})
        assert wrong(findings) == []
        assert findings[-1].text.startswith("0 of 16 ReLU units")

    def test_a_training_that_diverges(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "height-weight", "--model.lr", "1e30"]) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.split()[:2] == ["WRONG", "units"]
        assert last.endswith("; lower --model.lr")


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["diabtes"], "did you mean diabetes?"),
            (["height-weight", "--model.lrr", "1"], "did you mean --model.lr?"),
            (["height-weight", "--data.val_fraction", "0.5", "--data.test_fraction", "0.5"], "must stay below 1"),
            (["--fxi"], "did you mean --fix?"),
        ],
    )
    def test_are_one_line(self, flags: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("dlcourse: ")
        assert err.count("\n") == 1
        assert said in err

    def test_from_python(self) -> None:
        with pytest.raises(SettingsError, match=r"did you mean model\.lr"):
            check_topic("height-weight", model={"lrr": 1})
