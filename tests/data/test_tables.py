"""Tables come back as they were written, and whatever is no table is refused in one line that says where."""

import gzip
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlcourse.data.tables import read_features, read_table, two_classes
from dlcourse.errors import CourseError

values = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(2, 5)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
# The folder is the same for all examples of a test; each writes its file anew.
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

ROWS = "6,148,1\n1,85,0\n8,183,1\n"


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def refusal(path: Path, columns: int | None = None) -> str:
    """What is said of a file that is no table, without its path."""
    with pytest.raises(CourseError) as refused:
        read_table(path, columns)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value).replace(str(path), "FILE")


@in_one_folder
@given(values, st.booleans(), st.sampled_from(["table.csv", "table.csv.gz"]), st.sampled_from(["\n", "\r\n"]))
def test_a_table_comes_back_as_it_was_written(
    tmp_path: Path, numbers: np.ndarray[tuple[int, int], np.dtype[np.float64]], named: bool, name: str, end: str
) -> None:
    names = tuple(f"column {place}" for place in range(numbers.shape[1])) if named else ()
    lines = [",".join(names)] if named else []
    lines += [",".join(map(repr, row)) for row in numbers.tolist()]
    table = read_table(write(tmp_path / name, end.join(lines)), numbers.shape[1])
    assert np.array_equal(table.to_numpy(), numbers)
    assert tuple(table) == (names or (*(f"column {place}" for place in range(1, numbers.shape[1])), "label"))


def test_blank_lines_spaces_quotes_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    content = '\ufeffglucose, "label"\n\n 148 ,"1"\r\n85,0\n,\n\n'
    table = read_table(write(tmp_path / "table.csv", content))
    assert tuple(table) == ("glucose", "label")
    assert table.to_numpy().tolist() == [[148, 1], [85, 0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "FILE is empty"),
        ("\n \n\n", "FILE is empty"),
        ("age,label\n", "FILE has a first line of names and no rows below it"),
        ("6,148,1\n1,many,0\n", "FILE line 2, column 2: 'many' is no finite number"),
        ("age,glucose,label\n6,148,1\n1,85,none\n", "FILE line 3, column 3 (label): 'none' is no finite number"),
        (
            "age,sex,label\n6,male,1\n1,female,0\n",
            "FILE line 2, column 2 (sex): 'male' is no finite number, and neither",
        ),
        ("age,label\n\n\n6,\n", "FILE line 4, column 2 (label) is missing"),
        ("nan,1\n2,0\n", "FILE line 1, column 1: 'nan' is no finite number"),
        ("2,0\n-inf,1\n", "FILE line 2, column 1: '-inf' is no finite number"),
        ("2,0\n1e39,1\n", "FILE line 2, column 1: '1e39' is no finite number"),
        ("2,0\n1_0,1\n", "FILE line 2, column 1: '1_0' is no finite number"),
        ("a,2\n1,0\n", "FILE line 1, column 1: 'a' is no finite number"),
        ("1,2,3\n4,5\n", "FILE line 2, column 3 is missing"),
        ("1;2;3\n4;5;6\n", "FILE must have two or more columns, separated by commas, and has 1"),
        ("a,b\n1,2,3\n", "FILE cannot be read as a CSV file: .*line 2"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line_and_column(tmp_path: Path, content: str, said: str) -> None:
    for name in ("table.csv", "table.csv.gz"):
        assert re.match(said.replace("(", r"\(").replace(")", r"\)"), refusal(write(tmp_path / name, content)))


def test_the_number_of_columns_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", ROWS)
    assert read_table(path, 3).shape == (3, 3)
    assert refusal(path, 9) == "FILE must have 9 columns, separated by commas, and has 3"


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "plain.csv.gz").write_text(ROWS)
    files = {
        tmp_path / "none.csv": "No such file",
        tmp_path / "none.csv.gz": "No such file",
        tmp_path: "Is a directory",
        write(tmp_path / "image.csv", b"\x89PNG\r\n\x1a\n\x00"): "'utf-8' codec can't decode",
        tmp_path / "plain.csv.gz": "Not a gzipped file",
    }
    for path, reason in files.items():
        assert refusal(path).startswith(f"FILE cannot be read as a CSV file: {reason}")


@in_one_folder
@given(st.data())
def test_a_gzip_file_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path: Path, draw: st.DataObject) -> None:
    path = write(tmp_path / "table.csv.gz", ROWS * 20)
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.draw(st.integers(1, len(whole) - 1))])
    assert refusal(path).startswith("FILE cannot be read as a CSV file: ")


@in_one_folder
@given(st.data())
def test_a_damaged_gzip_file_gives_no_other_numbers(tmp_path: Path, draw: st.DataObject) -> None:
    path = write(tmp_path / "table.csv.gz", ROWS * 20)
    expected = read_table(path).to_numpy()
    damaged = bytearray(path.read_bytes())
    damaged[draw.draw(st.integers(0, len(damaged) - 1))] ^= draw.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with suppress(CourseError):
        assert np.array_equal(read_table(path).to_numpy(), expected), "only the file's date or name may be damaged"


@in_one_folder
@given(st.one_of(st.binary(max_size=60), st.text("0123456789.,-en\n\"' ;", max_size=60).map(str.encode)))
def test_any_file_is_a_table_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "table.csv", content)
    table = None
    with suppress(CourseError):
        table = read_table(path)
    if table is None:
        refusal(path)
    else:
        assert table.shape[0] >= 1
        assert table.shape[1] >= 2
        assert np.isfinite(table.to_numpy().astype(np.float32)).all()


def test_two_classes_are_given_in_order() -> None:
    assert two_classes("labels", np.array([2.0, 1, 1, 2])) == (1, 2)
    assert two_classes("labels", np.array([0.0, -1])) == (-1, 0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 1], "labels: every row has the label 1, and two classes are needed"),
        ([0, 1, 0.5], "labels: the last column must hold two labels, and holds 3: 0, 0.5, 1"),
        (range(7), "labels: the last column must hold two labels, and holds 7: 0, 1, 2, 3, 4, ..."),
    ],
)
def test_other_than_two_classes_are_refused(labels: list[float], said: str) -> None:
    with pytest.raises(CourseError) as refused:
        two_classes("labels", np.array(labels, dtype=float))
    assert str(refused.value) == said


FEATURES = ["body mass index", "height in cm"]


@pytest.mark.parametrize(
    ("content", "rows", "others"),
    [
        ("26,176\n31,150\n", [[26, 176], [31, 150]], []),
        ("body mass index,height in cm\n26,176\n", [[26, 176]], []),
        ("height,who,body_mass_index,label\n176,ada,26,1\n", [[26, 176]], []),
        ("bmi,height in m\n26,1.76\n", [[26, 1.76]], ["bmi", "height in m"]),
        ("height,body mass index,height\n176,26,177\n", None, []),
        ("26,176,1\n", None, []),
        ("height in cm\n176\n", None, []),
        ("height,body mass index\n176,none\n", None, []),
        ("height,body mass index\n", None, []),
        ("", None, []),
    ],
)
def test_columns_of_a_model(tmp_path: Path, content: str, rows: list[list[float]] | None, others: list[str]) -> None:
    path = write(tmp_path / "rows.csv", content)
    if rows is None:
        with pytest.raises(CourseError, match=r"rows\.csv"):
            read_features(path, FEATURES)
    else:
        table, named = read_features(path, FEATURES)
        assert (list(table), table.to_numpy().tolist(), named) == (FEATURES, rows, others)


def test_one_column_is_enough_for_a_model_of_one_and_lines_are_numbered(tmp_path: Path) -> None:
    table, _ = read_features(write(tmp_path / "rows.csv", "height\n\n176\n180\n"), ["height in cm"])
    assert list(table.index) == [3, 4]
    with pytest.raises(CourseError, match=r"line 2, column 2 \(height\): 'tall'"):
        read_features(write(tmp_path / "rows.csv", "who,height\nada,tall\n"), ["height"])
