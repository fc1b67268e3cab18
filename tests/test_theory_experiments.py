"""``reproduce`` with ``approximation``, ``flow``, ``stability``: from nothing, and what is said."""

from dataclasses import replace

import numpy as np
import pytest
from experiment_samples import run_twice, write_settings

from hessrmt.experiments import load as load_experiment
from hessrmt.experiments.approximation import Approximation, ApproximationEntry
from hessrmt.experiments.flow import FlowEntry, FlowTask, GradientFlows
from hessrmt.experiments.stability import Stability, StabilityEntry
from hessrmt.generalization.approximation import ApproximationStudy
from hessrmt.generalization.bias_free import initial_layers, maximum_margin
from hessrmt.generalization.flow import gradient_flow
from hessrmt.generalization.stability import LeaveOneOut, square_loss_study
from hessrmt.generalization.stationary import StationarySets

ABOUT = {
    "approximation": {
        *("Theorem 1, rates", "Theorem 1, dimension", "Theorem 1, equal units", "Theorem 2"),
        *("Theorem 3", "Boolean functions", "(z₊)² from ReLUs", "learning"),
    },
    "flow": {
        *("Lemma 1", "Lemma 3, Fig. 3", "eq. (15), Theorem 4.7", "maximum margin", "Theorem 4.6"),
        *("Lemma 5", "Lemma 2", "batch normalisation", "Hessian"),
    },
    "stability": {
        *("stability along training", "stability, margin and expected error"),
        *("pseudoinverse, unique", "pseudoinverse, continuous", "pseudoinverse, stable"),
        "stability and expected error, square loss",
    },
}


@pytest.mark.parametrize(
    ("kind", "gone", "change", "said"),
    [
        ("approximation", "sine-2-relu-nodes.h5", ("iterations = 3", "iterations = 4"), "iterat"),
        ("flow", "line-descent-0.h5", ("log_time = 10", "log_time = 9"), "log_time (10.0"),
        ("stability", "few-1.h5", ("draws = 4", "draws = 5"), "draws (4 in the file, 5 now)"),
    ],
)
@pytest.mark.slow
def test_everything_from_nothing(cli, tmp_path, kind, gone, change, said):
    path = write_settings(tmp_path, kind)
    found, _, out = run_twice(cli, path, gone, change, said)
    names = [row["run"] for row in found["runs"]]
    assert len(set(names)) == len(names)
    assert {file.suffix for file in (out / "figures").iterdir()} == {".png"}
    # all of it lies there now: only what is said is made again
    experiment, settings = load_experiment(write_settings(tmp_path, kind))
    entries = experiment.run(settings, "small", out)
    assert [entry.name for entry in entries] == names
    said = experiment.conclusions(entries)
    assert set(said) == ABOUT[kind]
    assert all(sentence.endswith(".") for sentence in said.values())
    assert len(experiment.figures(entries)) == len(list((out / "figures").iterdir()))


def fitted(deep, shallow, spread=0.01, name="sine", inputs=4, start="nodes"):
    """Errors that fall like powers of the units, equal at six units, with some spread."""
    units = np.array([6.0, 12, 24])
    both = spread if isinstance(spread, tuple) else (spread, spread)
    errors = {
        kind: (units[:, None] / 6) ** -power * (1 + wide * np.array([-1, 0, 1]))
        for kind, power, wide in zip(("deep", "shallow"), (deep, shallow), both, strict=True)
    }
    study = ApproximationStudy(name, inputs, units, errors, errors, errors, {})
    return ApproximationEntry(f"{name}-{inputs}", "Theorem 1", name, inputs, "relu", start, study)


def test_rates_and_dimensions_are_judged_by_their_exponents():
    say = Approximation().conclusions
    good = say([fitted(1.0, 0.5), fitted(0.9, 0.2, inputs=8)])
    assert "deep: exponents 0.90 to 1.00, 2 of 2 at least" in good["Theorem 1, rates"]
    assert (
        "larger for deep networks, by more than 2 standard errors, in 1 of 1"
        in (good["Theorem 1, dimension"])
    )
    assert good["Theorem 1, dimension"].endswith("agrees.")
    assert good["Theorem 1, equal units"].endswith("agrees.")
    bad = say([fitted(0.3, 0.5), fitted(0.1, 0.5, inputs=8)])
    assert "0 of 2 at least the bound's 1/2" in bad["Theorem 1, rates"]
    assert bad["Theorem 1, dimension"].endswith("does not agree.")
    assert "against it sine-4, sine-8" in bad["Theorem 1, equal units"]
    # a difference within the spread over starts is none
    unsure = say([fitted(0.55, 0.5, spread=(0.5, -0.5))])
    assert "in 0 of 1 cases, shallow ones in 0" in unsure["Theorem 1, equal units"]
    assert unsure["Theorem 1, equal units"].endswith("not shown.")


def test_a_target_that_is_reached_has_no_exponent_and_no_ratio():
    say = Approximation().conclusions
    reached = fitted(15.0, 0.5, name="polynomial")  # 24 units: 4^-15
    assert not reached.fitted.has_power("deep")
    assert reached.fitted.has_power("shallow")
    assert reached.exponent("deep") is None
    both = [reached, fitted(1.0, 0.5), fitted(15.0, 0.4, name="polynomial", inputs=8)]
    said = say([*both, fitted(0.9, 0.2, inputs=8)])
    assert "deep: exponents 0.90 to 1.00, 2 of 2 at least" in said["Theorem 1, rates"]
    names = "polynomial n = 4 relu, polynomial n = 8 relu"
    assert f"deep: the target itself is reached by {names};" in said["Theorem 1, rates"]
    assert "in 1 of 1 (sine" in said["Theorem 1, dimension"]
    assert "in 4 of 4 cases" in said["Theorem 1, equal units"]
    # 4^(1 - 0.5) and 4^(0.9 - 0.2), of the sine alone
    ratios = "where none is exact relu, n = 4: 2; relu, n = 8: 2.64:"
    assert ratios in said["Theorem 1, equal units"]
    only = say([reached])
    assert only["Theorem 1, rates"].startswith("deep: the target itself is reached by polynomial")
    assert "Theorem 1, dimension" not in only


def sets(first, second):
    """Sets of two flows with so many arrivals at two minima each."""
    classes = np.array([[0] * a + [1] * b for a, b in (first, second)])
    rest = np.zeros(classes.shape)
    return StationarySets(("constrained", "fixed-norm"), 9.0, classes, np.ones((2, 3)), rest, rest)


TASK = FlowTask(kind="hyperplane", samples=6, features=2)


def flow_entry(result, kind="descent", widths=(2, 1)):
    return FlowEntry(f"a-{kind}-0", "a", kind, widths, TASK, result)


def test_sets_agree_unless_a_difference_is_no_chance():
    def said(first, second):
        return GradientFlows().conclusions([flow_entry(sets(first, second), "all")])["Lemma 2"]

    assert said((6, 6), (5, 7)).endswith("minima that all have: agrees.")
    # three arrivals of one flow alone happen by chance
    assert "3 times from constrained and never from fixed-norm (p = 0.12" in said((9, 3), (12, 0))
    assert said((9, 3), (12, 0)).endswith(": agrees.")
    assert said((0, 12), (12, 0)).endswith("by one flow and hardly by the other.")


def test_a_margin_that_falls_is_said_to_fall():
    x, y = TASK.made()
    direction = maximum_margin(x, y).direction
    start = [np.stack([direction, -direction]) + 0.1, np.array([[1.0, -1.0]])]
    flow = gradient_flow(start, x, y, activation="smooth-relu", log_time=8, saved=41)
    assert flow.separated_from is not None
    entry = flow_entry(flow, widths=(2, 2, 1))
    said = GradientFlows().conclusions([entry])
    assert "in 1 of 1 flows" in said["Lemma 3, Fig. 3"]
    assert ": agrees here;" in said["Lemma 3, Fig. 3"]
    assert said["Lemma 1"].endswith("agrees.")
    margins = flow.margins.copy()
    margins[-1] /= 2
    fallen = GradientFlows().conclusions([replace(entry, result=replace(flow, margins=margins))])
    assert "in 0 of 1 flows" in fallen["Lemma 3, Fig. 3"]
    assert "falls by up to 5" in fallen["Lemma 3, Fig. 3"]
    scales = flow.scales.copy()
    scales[-1, 0] *= 1.1
    unequal = GradientFlows().conclusions([replace(entry, result=replace(flow, scales=scales))])
    assert unequal["Lemma 1"].endswith("does not agree.")


def test_one_sample_holds_a_flow_as_eq_15_says_and_two_do_not():
    x = np.array([[1.0, 0.4]])
    options = {"activation": "smooth-relu", "kind": "constrained", "log_time": 20, "saved": 3}
    alone = gradient_flow(initial_layers([2, 2, 1], 1), x, [1], **options)
    assert alone.support_size() == 1
    assert alone.support_residual().max() < 0.05
    np.testing.assert_allclose(alone.support_residual(), alone.misalignment(), atol=1e-6)
    # two samples at a right angle hold a hyperplane between them, 45° from each
    pair = gradient_flow([[[1.0, 0.2]]], np.eye(2), [1, 1], log_time=500, saved=3)
    assert pair.support_size() == pytest.approx(2, abs=0.01)
    assert pair.support_residual()[0] == pytest.approx(0.5**0.5, abs=0.01)
    assert pair.misalignment()[0] < 0.01
    assert pair.shares().sum() == pytest.approx(1)


def left_out(end, test):
    curve = np.array([1.0, end])
    return LeaveOneOut(
        np.arange(2.0), curve, curve, curve * 0, np.array([1.0, test]), curve * 0, np.ones(2)
    )


def test_stability_is_judged_over_starts_or_not_at_all():
    squares = square_loss_study(6, (2, 10), draws=4)

    def said(ends):
        flows = [StabilityEntry("", "g", left_out(a, b)) for a, b in ends]
        return Stability().conclusions([*flows, StabilityEntry("", "square loss", squares, 0)])

    few = said([(0.5, 0.5)] * 4)
    assert (
        "4 starts that separate are too few to say" in few["stability, margin and expected error"]
    )
    same = said([(0.5, 0.5)] * 8)["stability, margin and expected error"]
    assert "instability is the same for all starts" in same
    good = said([(0.1 * i, 0.05 * i) for i in range(1, 9)])
    assert "instability τ = +1.00" in good["stability, margin and expected error"]
    assert "agrees)" in good["stability, margin and expected error"]
    assert good["stability along training"].endswith("agrees.")
    bad = said([(0.1 * i, 0.9 - 0.05 * i) for i in range(1, 9)])
    assert "the other way round" in bad["stability, margin and expected error"]
    rising = said([(1.5, 0.5)] * 2)["stability along training"]
    assert "instability falls in 0 of 2" in rising
    assert "agrees in part" in rising
