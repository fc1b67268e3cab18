"""``hessrmt normalize --fit``: the line of a table, predictions, and what is refused."""

import json

import numpy as np
import pytest
from scipy import stats

from hessrmt.config import NormalizeConfig
from hessrmt.errors import ConfigError, DataError
from hessrmt.runs.normalize import fit_table


def write(path, x, y, head="name,train,test"):
    lines = [
        f"n{i},{a!r},{'' if b is None else repr(b)}"
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_the_line_and_its_predictions(tmp_path, cli):
    draw = np.random.default_rng(4)
    x = draw.uniform(2.2, 2.3, 9).tolist()
    y = [
        0.9 * value + 0.2 + 1e-3 * noise
        for value, noise in zip(x, draw.normal(size=9).tolist(), strict=True)
    ]
    gaps = [None if place in {2, 6} else value for place, value in enumerate(y)]
    table = write(tmp_path / "table.csv", x, gaps)
    result = cli("normalize", "--fit", table, "--level", "0.9", "--json", "--plot", "pictures")
    assert result.returncode == 0, result.stderr
    assert "written: 1 picture in" in result.stderr
    assert "extrapolated, beyond the training losses of the others: n0, n2, n3" in result.stderr
    found = json.loads(result.stdout)
    known = [place for place in range(9) if gaps[place] is not None]
    line = stats.linregress([x[i] for i in known], [y[i] for i in known])
    names = {"slope": line.slope, "slope_error": line.stderr}
    names |= {"intercept": line.intercept, "intercept_error": line.intercept_stderr}
    assert {name: found["line"][name] for name in names} == pytest.approx(names, rel=1e-9)
    # by hand: a network is predicted from all others that have both losses
    for place, point in enumerate(found["points"]):
        others = [i for i in known if i != place]
        a, b = np.array([x[i] for i in others]), np.array([y[i] for i in others])
        fit = stats.linregress(a, b)
        spread = np.sqrt(((b - fit.intercept - fit.slope * a) ** 2).sum() / (len(a) - 2))
        away = (x[place] - a.mean()) ** 2 / ((a - a.mean()) ** 2).sum()
        half = stats.t.ppf(0.95, len(a) - 2) * spread * np.sqrt(1 + 1 / len(a) + away)
        middle = fit.intercept + fit.slope * x[place]
        assert point["predicted"] == pytest.approx(middle, rel=1e-9)
        assert point["upper"] - point["lower"] == pytest.approx(2 * half, rel=1e-6)
        assert point["test"] == gaps[place]
        assert point["beyond"] == (not a.min() <= x[place] <= a.max())
        inside = None if gaps[place] is None else point["lower"] <= y[place] <= point["upper"]
        assert point["inside"] == inside
    assert found["outside"] == sum(point["inside"] is False for point in found["points"])


def test_intervals_hold_a_network_that_was_not_seen(tmp_path):
    """With normal errors exactly `level` of them, whatever the number of networks."""
    draw, sets, inside = np.random.default_rng(5), 300, 0
    for _ in range(sets):
        x = draw.normal(size=6)
        table = write(tmp_path / "table.csv", x.tolist(), (0.9 * x + draw.normal(size=6)).tolist())
        found = fit_table(NormalizeConfig(fit=table, level=0.8))
        inside += found.points[draw.integers(6)].inside  # one a set: those of a set are dependent
    assert inside / sets == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / sets))


def test_which_columns(tmp_path):
    both = tmp_path / "both.csv"
    head = "run,train_loss,test_loss,normalized_train_loss,normalized_test_loss\n"
    both.write_text(head + "".join(f"r{i},{i},{i * i},{i},{2 * i + (i == 2)}\n" for i in range(5)))
    with pytest.raises(ConfigError, match="train_loss,test_loss or normalized_train"):
        fit_table(NormalizeConfig(fit=both))
    columns = "normalized_train_loss,normalized_test_loss"
    found = fit_table(NormalizeConfig(fit=both, columns=columns))
    assert found.columns == tuple(columns.split(","))
    assert [point.name for point in found.points] == [f"r{i}" for i in range(5)]
    with pytest.raises(ConfigError, match="but not a,b"):
        fit_table(NormalizeConfig(fit=both, columns="a,b"))


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("name,train,test\na,1,2\nb,2,3\nc,3,4\n", DataError, "3 networks"),
        ("name,train,test\na,,2\n", ConfigError, "row 1 has no train"),
        ("name,train,test\na,1,inf\n", ConfigError, "test holds"),
        ("name,train,test\na,1,high\n", ConfigError, "test holds"),
        ("name,loss\na,1\n", ConfigError, "say which two"),
    ],
)
def test_unusable_tables(tmp_path, text, kind, match):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(kind, match=match):
        fit_table(NormalizeConfig(fit=table))


@pytest.mark.parametrize(
    "words",
    [("--columns", "a,b"), ("--fit", "t.csv", "--checkpoint", "x.pt"), ("--plot", "pictures")],
)
def test_mistakes(cli, words):
    result = cli("normalize", *words)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_network_without_which_there_is_no_line_is_not_predicted(tmp_path):
    x, y = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0], [1.1, 0.9, 1.0, 1.2, 0.8, 2.0]
    found = fit_table(NormalizeConfig(fit=write(tmp_path / "t.csv", x, y)))
    line = stats.linregress(x, y)
    assert found.line.slope == pytest.approx(line.slope)
    last = found.points[-1]
    assert np.isnan([last.predicted, last.lower, last.upper]).all()
    assert last.inside is None
    assert any("not predicted: n5" in note for note in found.notes)
    assert not np.isnan([point.predicted for point in found.points[:-1]]).any()
    with pytest.raises(ConfigError, match="both are 'train'"):
        fit_table(NormalizeConfig(fit=tmp_path / "t.csv", columns=("train", "train")))
