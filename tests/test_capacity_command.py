"""``hessrmt capacity``: JSON, tables, pictures, series, and one clear error for each mistake."""

import csv
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from safetensors.numpy import save_file
from scipy import stats
from test_capacity import heavy

import hessrmt as hr
from hessrmt.capacity import correlate
from hessrmt.config import CapacityConfig
from hessrmt.errors import ConfigError, DataError
from hessrmt.plots.capacity import alpha_histogram, alpha_quantiles
from hessrmt.runs.capacity import Series, networks_in, read_accuracies
from hessrmt.runs.capacity import run as run_capacity
from hessrmt.runs.tables import numbers_of, read_table

CONFIGS = Path(__file__).parents[1] / "configs"


def parsed(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def save(path, seed=0, **more):
    state = {
        "features.0.weight": heavy(24, 20 * 9, seed).reshape(24, 20, 3, 3),
        "features.0.bias": np.ones(24),
        "encoder.layers.11.attention.output_projection.weight": heavy(40, 60, seed),
        "head.weight": heavy(12, 50, seed + 1),
        **more,
    }
    torch.save({name: torch.as_tensor(value) for name, value in state.items()}, path)
    return path


@pytest.fixture
def net(tmp_path):
    return save(tmp_path / "net.pt")


def test_a_table_cuts_names_and_never_numbers(cli, tmp_path):
    # with --json the table is shown on standard error, 80 columns wide
    names = [f"encoder.layers.{i}.attention.output_projection.weight" for i in range(12)]
    more = {name: heavy(40, 60, i) * 1e-6**i for i, name in enumerate(names)}
    save(tmp_path / "net.pt", **more)
    result = cli("capacity", "net.pt", "--json")
    table = result.stderr.splitlines()
    assert max(map(cell_len, table)) <= 80
    cut = [line.split() for line in table if line.startswith(" encoder.l")]
    # the part that tells them apart is left
    assert len({name for name, *_ in cut}) == len(names)
    layers = {layer["name"]: layer for layer in parsed(result)["layers"]}
    order = [name for name in layers if name in names]
    for (name, _, _, _, top, *_), full in zip(cut, order, strict=True):
        begin, end = name.split("…")
        assert full.startswith(begin)
        assert full.removesuffix(".weight").endswith(end)
        assert top == f"{layers[full]['lambda_max']:.3g}"


def test_networks_layer_by_layer(cli, tmp_path):
    one, other = save(tmp_path / "one.pt"), save(tmp_path / "other.pt", seed=3)
    save(other, seed=3, **{"extra.weight": heavy(30, 20)})
    options = ("--side-by-side", "--csv", "table.csv", "--plot", "pictures", "--json")
    found = parsed(cli("capacity", "one.pt", "other.pt", *options))["side_by_side"]
    assert (found["networks"], found["by"]) == (["one", "other"], "name")
    reports = [hr.capacity.analyze(str(path)) for path in (one, other)]
    assert found["layers"] == [layer.name for layer in reports[1].analyzed]
    assert set(found["values"]) >= {"alpha", "log_frobenius", "log_alpha_norm", "stable_rank"}
    for metric, values in found["values"].items():
        for report, row in zip(reports, values, strict=True):
            known = {layer.name: getattr(layer, metric) for layer in report.analyzed}
            assert row == [known.get(name) for name in found["layers"]]
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == found["layers"]
    assert rows[-1]["alpha one"] == ""
    assert float(rows[0]["alpha other"]) == found["values"]["alpha"][1][0]
    assert (tmp_path / "pictures" / "side-by-side.png").stat().st_size > 0
    alone = cli("capacity", "one.pt", "--side-by-side")
    assert alone.returncode == 2
    assert "give two or more" in alone.stderr


def test_p_values_and_alternatives_are_shown(cli, tmp_path):
    """Evenly dense eigenvalues end where a power law has a tail, and the terminal says so."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((400, 400)))[0]
    weights = rotation * np.sqrt(rng.uniform(1, 3, 400))
    torch.save({"w": torch.from_numpy(weights)}, tmp_path / "net.pt")
    shown = cli("capacity", "net.pt", "--p-values", "50", "--compare", "truncated").stdout
    lines = shown.splitlines()
    heading, row = (line.split() for line in lines if "shape" in line or line.startswith(" w "))
    assert heading[:3] == ["shape", "α", "p"]
    assert row[3:5] == ["≤", "0.02"]  # of 50 samples none is as far
    (line,) = [line for line in shown.splitlines() if "truncated fits better" in line]
    assert line.endswith(": w")


def test_what_was_asked_for_is_shown(cli, tmp_path):
    for seed in range(2):
        save(tmp_path / f"{seed}.pt", seed)
    plain = cli("capacity", "0.pt").stdout
    shown = cli("capacity", "0.pt", "--randomize", "--initial", "1.pt").stdout
    for heading in ("traps", "‖ΔW‖"):
        assert heading in shown
        assert heading not in plain


def test_part_of_a_network_is_noted(cli, tmp_path):
    save_file(
        {"a": np.random.default_rng(0).random((30, 40))}, tmp_path / "m-00001-of-2.safetensors"
    )
    assert "one of several files" in cli("capacity", "m-00001-of-2.safetensors").stderr


def test_two_sided_distances(cli, tmp_path, net):
    result = cli("capacity", "net.pt", "--conv", "pooled", "--two-sided", "--json")
    found = parsed(result)
    assert "two-sided distance" in found["notes"][-1]
    assert "two-sided distance" in result.stderr
    plain = hr.capacity.analyze(str(net), "pooled")
    assert not plain.notes
    for layer, other in zip(found["layers"], plain.layers, strict=True):
        if layer["skipped"]:
            continue
        values = other.matrices[0].eigenvalues
        tails = [values[values >= x] for x in values[values > 0][:-2]]
        slopes = [len(tail) / np.log(tail / tail[0]).sum() for tail in tails]
        laws = [stats.pareto(a, scale=tail[0]).cdf for a, tail in zip(slopes, tails, strict=True)]
        distances = [stats.kstest(*each).statistic for each in zip(tails, laws, strict=True)]
        best = int(np.argmin(distances))
        assert layer["x_min"] == pytest.approx(tails[best][0], rel=1e-9)
        assert layer["ks_distance"] == pytest.approx(distances[best], abs=1e-9)
        assert layer["alpha"] == pytest.approx(1 + slopes[best], rel=1e-9)
        assert layer["ks_distance"] >= other.ks_distance - 1e-9


def test_networks_without_common_names_are_compared_by_depth():
    deep = {f"a.{i}.weight": heavy(30, 20, i) for i in range(3)}
    shallow = {f"b.{i}.weight": heavy(30, 20, i) for i in range(2)}
    reports = {name: hr.capacity.analyze(net) for name, net in (("a", deep), ("b", shallow))}
    found = hr.capacity.side_by_side(reports)
    assert (found.by, found.layers) == ("place", ("layer 1", "layer 2", "layer 3"))
    alpha = found.values["alpha"]
    assert alpha[0, :2].tolist() == alpha[1, :2].tolist()
    assert np.isnan(alpha[1, 2])
    with pytest.raises(DataError, match="two or more"):
        hr.capacity.side_by_side({"a": reports["a"]})


def test_layers_stay_in_the_order_of_their_networks():
    nets = ["abd", "acd", "xad"]
    reports = {
        net: hr.capacity.analyze({f"{name}.weight": heavy(20, 30) for name in net}) for net in nets
    }
    layers = "".join(name[0] for name in hr.capacity.side_by_side(reports).layers)
    assert sorted(layers) == list("abcdx")
    for net in nets:
        assert [name for name in layers if name in net] == list(net)


def test_what_cannot_be_analysed_is_named(cli, tmp_path):
    nan = heavy(20, 30)
    nan[3, 4] = np.nan
    odd = {"zero": np.zeros((8, 9)), "quantised": np.ones((9, 9), dtype=np.int8), "nan": nan}
    save(tmp_path / "mixed.pt", row=heavy(1, 30), pair=heavy(2, 30), **odd)
    result = cli("capacity", "mixed.pt", "--json")
    found = {layer["name"]: layer for layer in parsed(result)["layers"]}
    reasons = {"zero": "zero", "row": "single row", "nan": "1 of 600 weights are NaN"}
    for name, word in (reasons | {"quantised": "int8"}).items():
        assert word in found[name]["skipped"]
        assert found[name]["alpha"] is None
        assert re.search(rf"^skipped: {name}: .*{word}", result.stderr, re.MULTILINE)
    assert found["pair"]["skipped"] is None
    assert "distinct values" in found["pair"]["fit_failed"]
    assert re.search(r"^no power law: pair: 2 distinct", result.stderr, re.MULTILINE)
    assert "1 fits failed" in result.stderr


def test_many_skipped_tensors_are_summarised(cli, tmp_path):
    save(tmp_path / "deep.pt", **{f"norm.{i}.weight": np.ones(8) for i in range(30)})
    result = cli("capacity", "deep.pt")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("skipped")]
    assert line.startswith(
        "skipped: features.0.bias, norm.0.weight, norm.1.weight and 28 more: 1-D"
    )


# series


def published(series):
    with (CONFIGS / f"capacity-{series}.csv").open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.mark.parametrize("series", ["vgg", "resnet"])
def test_published_series(cli, tmp_path, series):
    """The weight files of torchvision by their names, here with other weights in them."""
    rows = published(series)
    for number, row in enumerate(rows):
        assert re.fullmatch(rf"{row['name']}-[0-9a-f]{{8}}\.pth", row["source"])
        save(tmp_path / row["source"], seed=number)
    files = [row["source"] for row in rows]
    table = CONFIGS / f"capacity-{series}.csv"
    result = cli("capacity", *files, "--against", table, "--json")
    found = parsed(result)
    assert [network["source"] for network in found["networks"]] == files
    assert found["accuracies"] == {
        name: [float(row[name]) for row in rows] for name in ("top1", "top5")
    }
    assert found["notes"] == []
    metrics = ["alpha_hat", "alpha_weighted", "mean_alpha", "mean_log_norm"]
    pairs = [(item["accuracy"], item["metric"]) for item in found["correlations"]]
    assert pairs == [(name, metric) for name in ("top1", "top5") for metric in metrics]
    for item in found["correlations"]:
        expected = correlate(
            [network[item["metric"]] for network in found["networks"]],
            found["accuracies"][item["accuracy"]],
        )
        for name in ("slope", "r_squared", "kendall", "spearman"):
            assert item[name] == pytest.approx(getattr(expected, name))
        assert item["n"] == len(rows)
    for row in rows:
        cells = rf"^ {row['name']} .* {row['top1']} +{row['top5']} *$"
        assert re.search(cells, result.stderr, re.MULTILINE)
    assert max(map(cell_len, result.stderr.splitlines())) <= 80


def test_published_accuracies():
    """The top-1 and top-5 of torchvision's table for IMAGENET1K_V1."""
    found = {row["name"]: (float(row["top1"]), float(row["top5"])) for row in published("vgg")}
    assert len(found) == 8
    assert found["vgg11"] == (69.020, 88.628)
    assert found["vgg19_bn"] == (74.218, 91.842)
    # deeper is better, and batch normalisation too
    for suffix in ("", "_bn"):
        tops = [found[f"vgg{depth}{suffix}"][0] for depth in (11, 13, 16, 19)]
        assert tops == sorted(tops)
    assert all(found[f"vgg{depth}_bn"] > found[f"vgg{depth}"] for depth in (11, 13, 16, 19))


def test_tables_of_accuracies(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("model,remark,top1,top5\na,good,70,90\nb,,75,\nc,bad,80,95\n")
    found, notes = read_accuracies(table, ["runs/a.pt", "b-0123abcd.pth", "d.pt"])
    tops = {"top1": (70.0, 75.0, math.nan), "top5": (90.0, math.nan, math.nan)}
    np.testing.assert_equal(found, tops)
    assert notes == (f"d.pt is not in {table}", f"of {table} not given: c")


@pytest.mark.parametrize("text", ["name;top1\na;70,5\n", "name\ttop1\na\t70.5\n"])
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    table = tmp_path / "table.csv"
    table.write_text(text)
    assert read_accuracies(table, ["a.pt"])[0] == {"top1": (70.5,)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('name,n\na,"1,234"\nb,"2,500"\n', None),  # thousands, or decimals: nobody knows
        ("name;n\na;1,5\nb;2\n", [1.5, 2.0]),
        ("name;n\na;1.234,5\nb;2\n", None),
        ("name,n\na,91%\nb,\nc,88.5%\n", [91.0, math.nan, 88.5]),
        ("name,n\na,91%\nb,0.9\n", None),  # of two units
        ("name;n\na;91,5%\nb;90%\n", [91.5, 90.0]),
    ],
)
def test_numbers_are_read_where_there_is_one_reading(tmp_path, text, found):
    (tmp_path / "table.csv").write_text(text)
    _, rows = read_table(tmp_path / "table.csv")
    np.testing.assert_equal(numbers_of(row["n"] for row in rows), found)


def test_a_spoilt_column_is_named_and_left_out(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("name,remark,top1,top5\na,good,70,90\nb,bad,7o,95\nc,fair,71,96\n")
    found, notes = read_accuracies(table, ["a.pt", "b.pt", "c.pt"])
    assert list(found) == ["top5"]
    assert notes == (f"{table}: '7o' in row 2 of column top1 is no number",)
    with pytest.raises(ConfigError, match="'7o' in row 2 of column top1"):
        read_accuracies(table, ["a.pt"], ["top1"])


@pytest.mark.parametrize(
    ("sources", "labels"),
    [
        (["x/a.pt", "x/b-0123abcd.pth"], ("a", "b")),
        (["a.pt", "a.pth"], ("a.pt", "a.pth")),
        (["x/a.pt", "y/a.pt"], ("x/a.pt", "y/a.pt")),
    ],
)
def test_labels_tell_networks_apart(sources, labels):
    reports = tuple(SimpleNamespace(source=source) for source in sources)
    assert Series(reports, {}, (), ()).labels == labels


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("net,top1\na,70\n", "columns net, top1"),
        ("name,top1\na,high\n", "no column of numbers"),
        ("name,top1\n", "no rows"),
        ("", "no rows"),
        ("name,top1\nz,70\n", "first rows are about z"),
        ("name,top1\na,70\na,71\n", "2 rows about a.pt"),
    ],
)
def test_unusable_tables(tmp_path, text, match):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_accuracies(table, ["a.pt"])


@pytest.fixture
def trained(tmp_path):
    """Ten networks in a folder, and a table of them."""
    (tmp_path / "nets").mkdir()
    lines = ["name,path,test_error,epochs"]
    for number in range(10):
        save(tmp_path / "nets" / f"net-{number}.pt", seed=number)
        lines.append(f"number {number},nets/net-{number}.pt,{0.1 + number**2 / 1000},{number}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return [f"nets/net-{number}.pt" for number in range(10)]


def test_networks_of_a_table_and_of_a_folder(cli, tmp_path, trained, monkeypatch):
    """The column ``path`` is from the folder of the table on, and needs no further words."""
    against = ("--against", "table.csv", "--columns", "test_error", "--json")
    listed = parsed(cli("capacity", *against))
    assert [network["source"] for network in listed["networks"]] == trained
    assert list(listed["accuracies"]) == ["test_error"]
    monkeypatch.chdir(tmp_path.parent)
    found = run_capacity(CapacityConfig(against=tmp_path / "table.csv", columns="test_error"), [])
    assert found.labels == tuple(f"net-{number}" for number in range(10))
    folder = run_capacity(CapacityConfig(against=tmp_path / "table.csv"), [str(tmp_path / "nets")])
    assert list(folder.accuracies) == ["test_error", "epochs"]
    for one, two, three in zip(
        listed["correlations"], found.correlations, folder.correlations, strict=False
    ):
        assert one["spearman_interval"] == list(two.spearman_interval)
        assert two == three
        assert two.n == 10


def test_too_few_networks_for_a_correlation_are_said_once(cli, trained):
    result = cli("capacity", *trained[:2], "--against", "table.csv", "--columns", "test_error")
    said = "no correlation with test_error: 2 networks with both; 3 are needed"
    assert " ".join(result.stdout.split()).count(said) == 1
    assert "spearman" not in result.stdout.lower()


def test_what_a_folder_is(tmp_path):
    """Files in natural order; shards, a folder with a configuration and others are one network."""
    for name in ("net-10.pt", "net-9.pt", "net-9.txt"):
        (tmp_path / name).write_text("")
    assert networks_in(str(tmp_path)) == [str(tmp_path / n) for n in ("net-9.pt", "net-10.pt")]
    (tmp_path / "config.json").write_text("{}")
    assert networks_in(str(tmp_path)) == [str(tmp_path)]
    for names, one in (("ab", True), ("aa", False)):
        folder = tmp_path / names
        folder.mkdir()
        for number, name in enumerate(names):
            save_file({name: np.ones((3, 4))}, folder / f"{number}.safetensors")
        assert (networks_in(str(folder)) == [str(folder)]) == one
    assert networks_in("net.pt") == ["net.pt"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "no network is given"),
        (("--against", "plain.csv"), "columns name, top1"),
        (("--against", "empty.csv"), "path in row 2 is empty"),
        (("net.pt", "--against", "plain.csv", "--columns", "top5"), "no column of numbers 'top5'"),
        (("net.pt", "./net.pt"), "net.pt is given twice"),
    ],
)
def test_series_that_are_not_said_right(cli, tmp_path, net, words, match):
    (tmp_path / "plain.csv").write_text("name,top1\nnet,70\n")
    (tmp_path / "empty.csv").write_text("path,top1\na.pt,70\n,80\n")
    result = cli("capacity", *words)
    assert result.returncode == 2
    assert match in result.stderr
    assert "Traceback" not in result.stderr


# pictures


def test_the_picture_shows_the_fit():
    from hessrmt.plots.capacity import layer_density

    draw = np.random.default_rng(0)
    planted = draw.normal(size=(400, 200))
    planted[:, 0] *= 30
    (layer,) = hr.capacity.analyze({"w": planted}).layers
    (axes,) = layer_density(layer).axes
    lines = {line.get_label().partition(",")[0]: line for line in axes.lines}
    tail, bulk = lines["power law"], lines["Marchenko-Pastur"]
    x, y = (np.asarray(values, dtype=float) for values in tail.get_data())
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    assert np.allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -layer.alpha)
    # the area under a curve is the share of the eigenvalues that it stands for
    assert np.trapezoid(y, x) == pytest.approx(
        layer.n_tail / 200 * (1 - (x[-1] / x[0]) ** (1 - layer.alpha)), rel=0.01
    )
    x, y = (np.asarray(values, dtype=float) for values in bulk.get_data())
    inside = np.isfinite(y)
    assert np.trapezoid(y[inside], x[inside]) == pytest.approx(1 - layer.spikes / 200, rel=0.02)
    assert "1 spikes" in bulk.get_label()


def test_layers_that_cannot_be_drawn_are_named(cli, tmp_path):
    save(tmp_path / "flat.pt", equal=np.eye(9))
    result = cli("capacity", "flat.pt", "--plot", "pictures")
    assert result.returncode == 0, result.stderr
    assert "not drawn: layer-equal" in result.stderr
    assert "written: 4 pictures" in result.stderr


@pytest.mark.parametrize("count", [2, 17, 60])
def test_any_number_of_networks_is_drawn(count):
    draw = np.random.default_rng(0)
    reports = {
        f"net{i}": hr.capacity.analyze({"a.weight": draw.standard_t(3, (30, 20))})
        for i in range(count)
    }
    every = [report.layers[0].alpha for report in reports.values()]
    panels = alpha_histogram(reports).axes
    assert len(panels) == (count if count <= 16 else 1)
    if count > 16:  # one histogram of all of them, less those beyond its end
        (area,) = (patch for patch in panels[0].patches if hasattr(patch, "get_data"))
        values, edges, _ = area.get_data()
        assert values.sum() == np.count_nonzero(np.array(every) <= edges[-1])
    (axes,) = alpha_quantiles(reports).axes
    if count <= 40:
        assert [label.get_text() for label in axes.get_yticklabels()] == list(reports)
    else:
        medians = next(line for line in axes.lines if line.get_label() == "spectra: median")
        np.testing.assert_allclose(medians.get_ydata(), every)
