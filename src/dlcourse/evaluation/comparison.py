"""Which is better, and is it real: stored runs in one table, with one sentence for each pair that matters."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.errors import SettingsError, suggestion
from dlcourse.evaluation.differences import (
    Answer,
    Estimate,
    compare_models,
    compare_settings,
    holm,
    mean_over_seeds,
    sentence,
)
from dlcourse.evaluation.evaluation import final_name
from dlcourse.evaluation.intervals import are_shares
from dlcourse.evaluation.overfitting import gap_of
from dlcourse.evaluation.stored import Candidate, Outputs, baselines_of
from dlcourse.reporting.comparison_figure import MOST_CURVES, draw_comparison
from dlcourse.reporting.note import link, run_page, table
from dlcourse.tracking.store import Store, StoredRun

MARGIN = 0.01
"""What is worth having: a point of accuracy, or this part of the other's loss."""
MOST_SENTENCES = 10
"""Sentences of each kind that are printed; all are in the JSON."""
MOST_CHARACTERS = 7500
"""Of a description: MLflow takes 8000, with the picture's address."""


@dataclass(frozen=True)
class Row:
    """What is told of a candidate. Figures are those of the kept weights; an interval is NaN where it is not known.

    Attributes:
        name: Its name.
        settings: Those of its settings that differ between the rows of the table.
        seeds: The number of seeds, each trained once; 0 for a baseline.
        val: The metric on validation rows, as a mean over the seeds.
        test: The metric on test rows, or on what the verdict is based on.
        gap: Validation loss minus training loss, as the overfitting monitor measured it.
        overfitting: How many of the seeds overfit.
        best_epoch: The mean of the seeds, as of the following.
        seconds: Of the fit.
        samples_per_second: In the last epoch.
        hardware: Device and precision.
        commit: The beginning of the commit, with a + where files differed from it.
        runs: The ids of the runs.
        problem: Why figures are missing.
    """

    name: str
    settings: dict[str, str]
    seeds: int
    val: Estimate | None
    test: Estimate | None
    gap: float | None
    overfitting: str
    best_epoch: float | None
    seconds: float | None
    samples_per_second: float | None
    hardware: str
    commit: str
    runs: list[str]
    problem: str = ""


@dataclass(frozen=True)
class Pair:
    """Two candidates, the answer to which of them is better, and that answer as a sentence."""

    name: str
    other: str
    answer: Answer
    sentence: str


@dataclass(frozen=True)
class Table:
    """Candidates on the same rows, the best on validation rows first, then the baselines.

    Attributes:
        reason: What distinguishes these rows from those of the first table; empty for that one.
        eval_split: The split of ``test`` in the rows.
        ranked_by: What the rows are ranked by, in words.
        rows: The rows.
        pairs: Each against the best, then each against the best baseline.
        problem: Why there are no pairs, if there are none.
    """

    reason: str
    eval_split: Split
    ranked_by: str
    rows: list[Row]
    baselines: list[Row]
    pairs: list[Pair]
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """A comparison, a table for each set of rows. ``lost`` maps whatever is not in the store to the reason."""

    topic: str
    metric: str
    higher_is_better: bool
    tables: list[Table]
    run_id: str = ""
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything is in the store."""
        return not self.lost

    @property
    def card(self) -> str:
        """Tables and sentences as text."""
        return "\n\n".join(self._as_text(each) for each in self.tables)

    def __str__(self) -> str:
        return self.card

    def _as_text(self, each: Table) -> str:
        head, *lines = cells(each, self.metric)
        # What is the same in all rows, such as the device, is told once below.
        common = [place for place in range(3, len(head)) if len({line[place] for line in lines[: len(each.rows)]}) == 1]
        kept = [place for place in range(len(head)) if place not in common]
        widths = [max(len(line[place]) for line in (head, *lines)) for place in kept]
        text = [
            "  ".join(line[place].ljust(width) for place, width in zip(kept, widths, strict=True)).rstrip()
            for line in (head, *lines)
        ]
        told = "; ".join(f"{head[place]} {lines[0][place]}" for place in common if lines[0][place])
        reason = [f"on other rows: {each.reason}"] if each.reason else []
        under = [f"all: {told}"] if told else []
        return "\n".join([*reason, *text, *under, each.ranked_by, *sentences(each)])

    def note(self, experiment_id: str) -> str:
        """The description of its run in Markdown: whole, or of many candidates without links, with fewer sentences."""
        text = self._note(experiment_id, MOST_SENTENCES)
        for most in (MOST_SENTENCES, 3, 1):
            if len(text) > MOST_CHARACTERS:
                text = self._note(None, most)
        return text[:MOST_CHARACTERS]

    def _note(self, experiment_id: str | None, most: int) -> str:
        parts = []
        for each in self.tables:
            head, *lines = cells(each, self.metric)
            for line, row in zip(lines, (*each.rows, *each.baselines), strict=True):
                pages = [run_page(experiment_id, run) for run in row.runs] if experiment_id else [None]
                numbers = [link(str(number), page) for number, page in enumerate(pages, start=1)]
                line[0] = link(line[0], pages[0]) if len(pages) == 1 else f"{line[0]} ({' '.join(numbers)})"
            first = each.rows[0].name
            parts += [f"on other rows: {each.reason}"] if each.reason else []
            parts += [f"**{first}** is first, {each.ranked_by}"]
            parts += ["\n".join(f"- {sentence}" for sentence in sentences(each, most)), table(head, lines)]
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        plain = dataclasses.asdict(self)
        for made, each in zip(plain["tables"], self.tables, strict=True):
            for pair, told in zip(made["pairs"], each.pairs, strict=True):
                pair["answer"] = told.answer.as_dict()
        return plain

    def as_csv(self) -> str:
        """One line for each row of each table, with a column for each setting that differs anywhere."""
        every = [(place, row) for place, each in enumerate(self.tables) for row in (*each.rows, *each.baselines)]
        settings = list(dict.fromkeys(name for _, row in every for name in row.settings))
        lines = []
        for place, row in every:
            plain = dataclasses.asdict(row)
            line: dict[str, Any] = {"table": place, "name": row.name}
            line |= {name: row.settings.get(name) for name in settings}
            for kind in ("val", "test"):
                estimate = plain.pop(kind) or {}
                split = self.tables[place].eval_split if kind == "test" else kind
                key = f"{split}/{self.metric}"
                line |= {key: estimate.get("mean")}
                line |= {f"{key}_{end}": estimate.get(end) for end in ("std", "low", "high")}
            line |= {name: value for name, value in plain.items() if name not in ("settings", "name", "runs")}
            lines.append(line | {"runs": " ".join(row.runs)})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()


def cells(each: Table, metric: str) -> list[list[str]]:
    """The head and the lines of a table, as text, without empty columns."""
    head = ["name", f"validation {metric}", f"{SPLIT_NAMES[each.eval_split]} {metric}", "settings", "seeds", "gap"]
    head += ["overfitting", "best epoch", "seconds", "samples/s", "device", "commit", "problem"]
    lines = []
    for row in (*each.rows, *each.baselines):
        settings = ", ".join(f"{name.partition('.')[2]}={value}" for name, value in row.settings.items())
        figures = [
            _figure(row.gap, ".3g"), row.overfitting, _figure(row.best_epoch, ".4g"),
            _figure(row.seconds, ".3g"), _figure(row.samples_per_second, ".0f"),
        ]  # fmt: skip
        seeds = str(row.seeds) if row.seeds else "baseline"
        estimates = [str(each or "") for each in (row.val, row.test)]
        lines.append([row.name, *estimates, settings, seeds, *figures, row.hardware, row.commit, row.problem])
    if each.eval_split != "test":  # the same column twice, or none of validation rows
        place = 1 if each.eval_split == "val" or not any(row.val for row in each.rows) else 2
        head, lines = head[:place] + head[place + 1 :], [line[:place] + line[place + 1 :] for line in lines]
    told = [place for place in range(len(head)) if any(line[place] for line in lines)]
    return [[line[place] for place in told] for line in (head, *lines)]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def sentences(each: Table, most: int = MOST_SENTENCES) -> list[str]:
    """Those of the pairs, the first ones against the best and against the baseline."""
    names = {row.name for row in each.baselines}
    of_best = [pair.sentence for pair in each.pairs if pair.other not in names]
    of_baseline = [pair.sentence for pair in each.pairs if pair.other in names]
    left = sum(max(len(part) - most, 0) for part in (of_best, of_baseline))
    more = [f"... and {left} more pairs, which --json has"] if left else []
    return [*of_best[:most], *of_baseline[:most], *more, *([each.problem] if each.problem else [])]


def compare_candidates(
    store: Store,
    topic: str,
    experiment_id: str,
    candidates: Sequence[Candidate],
    metric: str | None = None,
    margin: float | None = None,
    without_outputs: tuple[str, Mapping[str, bool]] = ("loss", {"loss": False}),
) -> Comparison:
    """Compare candidates, those on the same rows with each other.

    Args:
        store: The store.
        topic: The topic's name.
        experiment_id: MLflow's id of its experiment.
        candidates: What to compare; outputs are read of one at a time.
        metric: The metric, by default the primary one.
        margin: The smallest difference worth having, by default a point of accuracy, or 1 % of the best loss.
        without_outputs: The primary metric, and whether higher is better by metric, where no run has kept outputs.

    Raises:
        SettingsError: No such metric is measured for each row.
    """
    groups: dict[str, list[Candidate]] = {}
    for each in candidates:
        groups.setdefault(each.first.data.tags.get("dlcourse.split", ""), []).append(each)
    # The rows that most candidates have come first.
    order = sorted(groups, key=lambda split: -len(groups[split]))
    known = next((out for split in order for each in groups[split] if (out := Outputs.of(store, each))), None)
    _, primary, higher = known.metrics() if known else ("test", *without_outputs)
    metric = metric or primary
    if metric not in higher:
        near = suggestion(metric, higher) or f"; there are {', '.join(higher)}"
        raise SettingsError(f"--metric {metric} is not measured for each row of these runs{near}")
    first = groups[order[0]][0]
    tables = [
        _Comparer(store, experiment_id, metric, higher[metric], margin).table(
            split, groups[split], _reason(first, groups[split][0]) if place else ""
        )
        for place, split in enumerate(order)
    ]
    return Comparison(topic, metric, higher[metric], tables)


def _reason(first: Candidate, other: Candidate) -> str:
    """Why two candidates have other rows."""
    params, others = first.first.data.params, other.first.data.params
    names = sorted({name for name in {**params, **others} if name.startswith("data.")})
    changed = [name for name in names if params.get(name) != others.get(name)]
    told = [f"{name} {others.get(name, 'none')}, not {params.get(name, 'none')}" for name in changed]
    return "; ".join(told) or "the data set has changed, though its settings have not"


@dataclass(frozen=True)
class _Measured:
    """A candidate's row, what it is ranked by (smaller is better), and which of its seeds does best by that."""

    candidate: Candidate
    row: Row
    rank: tuple[bool, float]
    best_seed: int
    is_compared: bool


@dataclass(frozen=True)
class _Comparer:
    store: Store
    experiment_id: str
    metric: str
    higher_is_better: bool
    margin: float | None

    def table(self, split: str, candidates: Sequence[Candidate], reason: str) -> Table:
        eval_split = self._eval_split(candidates)
        differing = _differing(candidates)
        measured = sorted((self._measure(each, eval_split, differing) for each in candidates), key=lambda one: one.rank)
        baselines = [
            self._measure(each, eval_split, []) for each in baselines_of(self.store, self.experiment_id, split)
        ]
        baselines = [each for each in baselines if each.row.test]
        baselines.sort(key=lambda one: self._loss(one.row.test))
        compared = [each for each in measured if each.is_compared]
        has_val = any(each.row.val for each in measured)
        ranked_by = f"ranked by {SPLIT_NAMES['val' if has_val else eval_split]} {self.metric}, the mean over the seeds"
        pairs, problem = list[Pair](), ""
        if eval_split == "train":
            problem = "these are training rows: which is better on other rows is not known"
        elif not compared:
            problem = "nothing is compared: that takes outputs on at least two rows"
        else:
            pairs = self._pairs(compared, baselines[:1], eval_split)
        return Table(
            reason, eval_split, ranked_by, [each.row for each in measured], [each.row for each in baselines], pairs,
            problem,
        )  # fmt: skip

    def _eval_split(self, candidates: Sequence[Candidate]) -> Split:
        """That of the first run with outputs; without any the one that a run has a final metric of."""
        for each in candidates:
            if out := Outputs.of(self.store, each):
                return out.metrics()[0]
        splits: tuple[Split, ...] = ("test", "val", "train")
        for split in splits:
            if any(each.metric(final_name(split, self.metric)) for each in candidates):
                return split
        return "test"

    def _loss(self, estimate: Estimate | None) -> float:
        """The mean, such that smaller is better."""
        if estimate is None or math.isnan(estimate.mean):
            return math.inf
        return -estimate.mean if self.higher_is_better else estimate.mean

    def _measure(self, each: Candidate, eval_split: Split, differing: Sequence[str]) -> _Measured:
        out = Outputs.of(self.store, each) if each.is_finished else None
        of_val, of_test = (out.values(split, self.metric) if out else None for split in ("val", eval_split))
        val, test = self._estimate(each, of_val, "val"), self._estimate(each, of_test, eval_split)
        problem = "; ".join(f"seed {seed}: {why}" for seed, why in each.failures.items())
        if each.is_finished and out is None:
            problem = "; ".join(
                filter(None, [problem, "not compared: it has kept no outputs, as those of older versions"])
            )
        ranked = val or (test if eval_split != "test" else None)
        by_seed = of_test if of_val is None else of_val  # seeds x rows
        gains = [0.0] if by_seed is None else (by_seed.mean(1) * (1 if self.higher_is_better else -1)).tolist()
        row = self._row(each, val, test, differing, problem)
        return _Measured(
            each, row, (bool(each.failures), self._loss(ranked)), max(range(len(gains)), key=gains.__getitem__),
            is_compared=of_test is not None and of_test.shape[1] > 1,
        )  # fmt: skip

    def _estimate(self, each: Candidate, values: Tensor | None, split: Split) -> Estimate | None:
        """The metric on a split, from seeds x rows values; of runs without outputs from what they have logged."""
        if values is not None:
            return mean_over_seeds(values)
        logged = each.metric(final_name(split, self.metric)) if each.is_finished else []
        if split == "val" and not logged and each.first.data.tags.get("dlcourse.refit"):
            logged = [value for run in each.runs if (value := self._before_refit(run)) is not None]
        if not logged:
            return None
        return Estimate(sum(logged) / len(logged), None, math.nan, math.nan)

    def _before_refit(self, run: StoredRun) -> float | None:
        """What the validation rows said in the epoch that was chosen, before they became training rows."""
        history = self.store.client.get_metric_history(run.info.run_id, f"val/{self.metric}")
        return {point.step: point.value for point in history}.get(int(run.data.metrics.get("best_epoch", -1)))

    def _row(
        self, each: Candidate, val: Estimate | None, test: Estimate | None, differing: Sequence[str], problem: str
    ) -> Row:
        is_baseline = each.first.data.tags.get("dlcourse.kind") == "baseline"
        texts = [run.data.tags.get("overfitting", "") for run in each.runs]
        seen = sum(text.startswith("from epoch") for text in texts)
        gaps = [gap for text in texts if (gap := gap_of(text)) is not None]
        overfitting = "" if not gaps else f"{seen} of {len(texts)}" if len(texts) > 1 else "yes" if seen else "no"
        commits = list(dict.fromkeys(_commit(run) for run in each.runs))
        return Row(
            name=each.name,
            settings={name: each.first.data.params.get(name, "") for name in differing},
            seeds=0 if is_baseline or not each.is_finished else len(each.runs),
            val=val,
            test=test,
            gap=_mean(gaps),
            overfitting=overfitting,
            best_epoch=_mean(each.metric("best_epoch")),
            seconds=_mean(each.metric("fit_seconds")),
            samples_per_second=_mean(each.metric("samples_per_second")),
            hardware=" and ".join(filter(None, each.tag("dlcourse.hardware"))),
            commit=commits[0] if len(commits) == 1 else f"{len(commits)} commits",
            runs=[run.info.run_id for run in each.runs],
            problem=problem,
        )

    def _pairs(self, compared: Sequence[_Measured], baselines: Sequence[_Measured], split: Split) -> list[Pair]:
        """Each against the best, then each against the best baseline; p-values are adjusted among either (Holm).

        The best was chosen by the data. So the first are adjusted as if all pairs had been tested, of which they are
        some.
        """
        best, *others = compared
        count = len(compared)
        of_best = self._answers(others, best, split, count * (count - 1) // 2)
        of_baselines = [pair for baseline in baselines for pair in self._answers(compared, baseline, split, count)]
        return [*of_best, *of_baselines]

    def _answers(self, candidates: Sequence[_Measured], other: _Measured, split: Split, hypotheses: int) -> list[Pair]:
        if not candidates:
            return []
        theirs, is_baseline = self._values(other, split), not other.row.seeds
        margin = self.margin
        if margin is None:
            margin = MARGIN * (1.0 if are_shares(theirs) else abs(float(theirs.mean())))
        answers = []
        for each in candidates:
            mine = self._values(each, split)
            if len(mine) > 1 and (len(theirs) > 1 or is_baseline):
                fixed = theirs[0] if is_baseline else theirs
                answer = compare_settings(mine, fixed, higher_is_better=self.higher_is_better, margin=margin)
            else:
                answer = compare_models(
                    mine[each.best_seed], theirs[other.best_seed], higher_is_better=self.higher_is_better, margin=margin
                )
            answers.append(answer)
        return [
            Pair(each.row.name, other.row.name, answer, sentence(answer, each.row.name, other.row.name, self.metric))
            for each, answer in zip(candidates, holm(answers, hypotheses), strict=True)
        ]

    def _values(self, each: _Measured, split: Split) -> Tensor:
        out = Outputs.of(self.store, each.candidate)
        values = out.values(split, self.metric) if out else None
        assert values is not None  # of those that are compared
        return values


def _differing(candidates: Sequence[Candidate]) -> list[str]:
    """The settings, but for the seed, that are not the same for all."""
    params = [each.first.data.params for each in candidates]
    names = dict.fromkeys(name for each in params for name in each if name != "seed")
    return [name for name in names if len({each.get(name) for each in params}) > 1]


def _commit(run: StoredRun) -> str:
    commit = run.data.tags.get("mlflow.source.git.commit", "")[:7]
    return f"{commit}+" if run.data.tags.get("dlcourse.git.dirty") == "true" else commit


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def figure_of(store: Store, comparison: Comparison) -> Figure:
    """Curves of the first table's rows, those of validation loss where there are any, and all differences in it."""
    first = comparison.tables[0]
    name = "train/loss" if first.eval_split == "train" else "val/loss"
    curves = {}
    for row in first.rows[:MOST_CURVES]:
        histories = [store.client.get_metric_history(run, name) for run in row.runs]
        seeds = [[(point.step, point.value) for point in history] for history in histories if history]
        if seeds:
            curves[row.name] = seeds
    differences = [
        (f"{pair.name} - {pair.other}", pair.answer.difference, pair.answer.low, pair.answer.high)
        for pair in first.pairs[: 2 * MOST_SENTENCES]
    ]
    split = "training" if first.eval_split == "train" else "validation"
    margin = first.pairs[0].answer.margin if first.pairs else 0.0
    return draw_comparison(curves, f"{split} loss", differences, comparison.metric, margin)
