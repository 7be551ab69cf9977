"""The commands of the pages in docs/: each is one that can be typed, with settings that exist."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dlcourse import topics
from dlcourse.evaluation.sweep import sweep
from dlcourse.experiment import compare, train
from dlcourse.tracking.opening import open_store
from dlcourse.training.overfit_batch import overfit
from dlcourse.training.request import resolve, settings_parser
from dlcourse.training.space import find_space, read_space
from tests.conftest import ROOT
from tests.processes import words_of

PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(page: Path) -> list[str]:
    """The lines of code blocks that make or torchrun begins, and what a page says to try with its own topic."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    typed = [line.partition("#")[0].partition("||")[0].strip() for line in lines]
    in_text = re.findall(r"`((?:make|EXPERIMENT=|ARGS=)[^`]*)`", text)
    typed += [code if code.startswith("make") else f"make train-{page.stem} {code}" for code in in_text]
    return sorted({line for line in typed if re.match(r"make (train|compare|overfit|sweep)-|torchrun |srun ", line)})


@pytest.mark.parametrize("command", [line for page in PAGES for line in commands(page)])
def test_commands_can_be_taken(command: str) -> None:
    launched = command.partition("-m dlcourse ")[2]
    verb, name, *words = shlex.split(launched) if launched else words_of(command, ROOT)
    topic = topics.find(name)
    parser = settings_parser(topic, verb)
    parser.add_command({"train": train, "compare": compare, "overfit": overfit, "sweep": sweep}[verb])
    values = parser.parse_flags(words)
    groups = [values.get(group) for group in ("data", "model", "trainer", "seed")]
    for experiment in values.get("runs") or values["config"]:
        request = resolve(topic, experiment, *groups)
        if verb == "sweep":
            read_space(find_space(topic, values.get("space", "default")), request)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def example(page: str, name: str) -> str:
    """The code of a page between ``<!-- example: name -->`` and its end."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```\n<!-- /example", text, re.DOTALL)
    assert found, f"{page} has no example {name!r}"
    return found[1]


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_callbacks_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "example.py").write_text(example("own-module.md", "callbacks alone"), encoding="utf-8")
    runpy.run_path(str(project / "example.py"))
    epoch = re.search(r"diverged in epoch (\d+)", capsys.readouterr().out)
    assert epoch
    assert int(epoch[1]) < 49
    store = open_store()
    (run,) = store.client.search_runs([store.experiment("line")])
    assert (run.data.params["lr"], run.info.status) == ("3.0", "FINISHED")
    history = store.client.get_metric_history(run.info.run_id, "train_loss")
    assert [each.step for each in history][:3] == [4, 9, 14]
