"""Reports: one page, complete, offline, with every name escaped."""

import json
import math
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import hessrmt as hr
from hessrmt.capacity.correlation import correlate
from hessrmt.config import CapacityConfig
from hessrmt.errors import ConfigError, StoreError
from hessrmt.experiments.experiment import ExperimentResult
from hessrmt.plots import style
from hessrmt.records import Provenance, Spectra, Spectrum, source_in_words
from hessrmt.runs.capacity import run as networks
from hessrmt.runs.findings import findings
from hessrmt.runs.page import page as html
from hessrmt.runs.page import shown_columns
from hessrmt.runs.report import report, sections_of
from hessrmt.runs.tracking import Track
from hessrmt.tables import measured, probability

EVIL = "<script>alert(1)</script> & more"


class Page(HTMLParser):
    """Tags that were opened and not closed, addresses that would be fetched, text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            inside = value.startswith(("#", "data:image/"))
            outside = name in {"src", "href", "xlink:href", "data"} and not inside
            self.fetched += [value] * outside

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def said(self):
        """All but pictures' and scripts' markup as one text."""
        return " ".join(self.text)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    problem = hr.Problem(model, "cross-entropy", (x, y))
    hr.spectrum(problem).save(folder / "one.h5")
    hr.density(problem, probes=2, steps=10, top=2, trace="hutch++").save(folder / "density.h5")
    hr.landscape(problem, 2, points=5).save(folder / "landscape.h5")
    tracker = hr.Tracker(problem, every=1, out=folder / "track.h5")
    tracker(0, lr=0.1)
    tracker(1, lr=0.1)
    tracker.close()
    levels = [np.sort(np.random.default_rng(i).normal(size=60)) for i in range(2)]
    hr.levels.analyze(levels, surrogates=20).save(folder / "levels.h5")
    weights = np.random.default_rng(0).normal(size=(2, 40, 60))
    hr.capacity.analyze({"layer": weights[0]}).save(folder / "capacity.h5")
    for number, values in enumerate(weights):
        np.savez(folder / f"net{number}.npz", layer=values)
    sources = [str(folder / f"net{number}.npz") for number in range(2)]
    networks(CapacityConfig(), sources).save(folder / "series.h5")
    return folder


NAMES = ("one", "density", "landscape", "track", "levels", "capacity", "series")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file(files, name):
    (section,) = sections_of(files / f"{name}.h5", 20)
    page = Page(html([section], "title", {"GOE": "a term"}, "hessrmt 0"))
    assert page.open == []
    assert not page.fetched
    assert "svg" in page.tags or name == "levels"
    assert ("Reference laws" in page.text) == (name in {"one", "levels"})
    assert f"{name}.h5" in page.text
    assert page.text.count("What the words mean") == 1
    assert not re.search(r"``|:\w+:`", page.said())  # markup of docstrings
    assert "test_report" not in page.said()  # what a script's folder is called is nobody's business
    assert section.conclusions
    assert section.origin
    shown = {name for rows in section.tables.values() for name in shown_columns(rows)}
    assert section.words.keys() <= shown | section.facts.keys()  # no word that doesn't occur
    assert not re.search(r"\b(\S+) to \1\b|\b1 (spectra|layers|networks)\b", page.said())


def test_several_files_side_by_side(files):
    text = report([files / f"{name}.h5" for name in NAMES], EVIL, surrogates=0)
    page = Page(text)
    assert page.open == []
    assert not page.fetched
    assert page.tags.count("svg") >= 2 * (len(NAMES) - 1)  # each for screen and for phone
    assert "Side by side" in page.text
    assert page.text.count("What the words mean") == 1
    words = re.findall(r"<dt>(.*?)</dt>", text[text.index('id="words"') :])
    assert len(words) == len(set(words)) > 20
    assert EVIL not in text
    assert EVIL in page.text


def test_names_from_files_are_escaped(files):
    path = files / "<b>one & two.h5"
    shutil.copy(files / "one.h5", path)
    text = report([path], surrogates=0)
    assert "<b>one" not in text
    assert path.name in Page(text).text


def test_the_numbers_are_those_of_the_file(files):
    spectrum = hr.load(files / "one.h5")[0]
    page = Page(report([files / "one.h5"], surrogates=0))
    for number in (spectrum.eigenvalues[-1], spectrum.loss, spectrum.noise_floor):
        assert f"{number:.6g}" in page.text
    assert str(spectrum.rank) in page.text


def test_what_cannot_be_reported(files, tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        report([])
    with pytest.raises(StoreError):
        report([tmp_path / "missing.h5"])


def test_the_command_names_what_differs_from_the_defaults(cli, tmp_path):
    made = "spectrum --model logistic --batches 1 --batch 8 --out run.h5"
    assert cli(*made.split()).returncode == 0
    found = json.loads(cli("report", "run.h5", "--surrogates", 0, "--json").stdout)
    assert found == {"file": "report.html", "files": ["run.h5"]}
    text = (tmp_path / "report.html").read_text()
    (shown,) = re.findall(r"<pre>(.*?)</pre>", text)
    parts = re.findall("<span>(.*?)</span>", shown)
    assert parts[0] == "hessrmt spectrum"
    assert {"--model logistic", "--batch 8", "--batches 1"} <= set(parts)
    again = cli(*shlex.split(" ".join(parts))[1:], "--out", "again.h5")
    assert again.returncode == 0
    one, two = hr.load(tmp_path / "run.h5"), hr.load(tmp_path / "again.h5")
    assert one.eigenvalues.tolist() == two.eigenvalues.tolist()
    assert cli("report", "run.h5").returncode == 2  # report.html is there


def track(largest, rate=None, bound=0.0, **numbers):
    """A training whose λ_max was this, every ten steps."""
    nothing = np.full(len(largest), math.nan)
    told = {name: np.full(len(largest), value) for name, value in numbers.items()}
    return Track(
        steps=10 * np.arange(len(largest)),
        loss=np.linspace(2, 1, len(largest)),
        gradient_norm=nothing,
        largest=np.array(largest, dtype=float),
        largest_bound=np.full(len(largest), bound),
        **dict.fromkeys(("smallest", "smallest_bound", "trace", "trace_error"), nothing),
        rank=nothing,
        noise_floor=nothing,
        nodes=np.empty((len(largest), 0, 0)),
        weights=np.empty((len(largest), 0, 0)),
        numbers=told if rate is None else {"lr": np.full(len(largest), rate), **told},
        dimension=3,
    )


RISING = [1, 2, 3, 5, 6, 4.2, 4.1, 3.9, 4.0, 4.1, 3.95, 3.95]
TRAININGS = [
    (
        track(RISING, 0.5),
        r"rises above 2/η = 4 between steps 20 \(3\) and 30 \(5\); 5 of 12 measurements lie above, "
        r"the last at step 90|settles at 4 over .*steps 90 to 110.*edge of stability",
    ),
    (track([1, 2, 3], 0.5), r"never .* above 2/η = 4: .* nearest at step 20, with 3, 75% of it"),
    (
        track([5, 3, 2], 0.5),
        r"is already above 2/η = 4 at the first measurement \(step 0: 5\); 1 of 3 .* lies above",
    ),
    (track([1, 2, 4.5], 0.5, bound=1.0), "never measured above"),  # within its bound it may be 4
    (track([1, 2, 30], 0.1, momentum=0.5), r"never .* above 2\(1 \+ β\)/η = 30"),
    (
        track([1, 2, 9], 0.5, sgd=0.0),
        "not compared with 2/η: the optimiser is not SGD, .*SGD, learning rate 0.5",
    ),
    (track([1, 2, 9], 0.0), "not compared with 2/η: no learning rate above 0"),
    (track([1, 2, 9]), "told no learning rate"),
    (track([1, 2, 9], 0.5), r"has not settled: .* still rises from 1 to 9, .* on average, 100% of"),
    (track([9, 5, 3], 0.5), r"has not settled: .* still falls from 9 to 3"),
    (track([4, 4, 4], 0.5, minibatches=8.0), r"100% of 2/η\. .* 8 minibatches .* no threshold"),
    (
        track([4, 4, 4], 0.5, minibatches=1.0),
        r"edge of stability.*0\.5, all samples in every step\.",
    ),
    (track([4, 4, 4], 0.5), r"edge of stability.*doesn't say whether minibatches were taken"),
    (track([9, 2, 9], 0.5), "has not settled: .* still moves between 2 and 9"),
    (track([2, 2.1], 0.5), "too few measurements to say"),
]


@pytest.mark.parametrize(("found", "words"), TRAININGS)
def test_what_is_said_of_a_training(found, words):
    said = " ".join(findings(found))
    for one in words.split("|settles"):
        assert re.search(one, said), said
    assert "from 2 to 1" in said  # the loss


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            [8, 25, -9, 3],
            "goes from 8 to 3, 25 at the highest (step 10), -9 at the lowest (step 20)",
        ),
        ([8, 8.1, 5, 3], "goes from 8 to 3"),
        ([8, 12, 8, 8], "begins and ends at 8, 12 at the highest (step 10)"),
        ([8, 8, 8, 8], "stays at 8"),
        ([8, math.nan, 4, 3], "goes from 8 to 3"),
    ],
)
def test_a_course_tells_what_its_ends_hide(values, words):
    found = replace(track([1, 2, 3, 4]), trace=np.array(values, dtype=float))
    assert f"The trace {words}." in list(findings(found))


def test_numbers_with_their_errors():
    assert measured(111.808348347, 2e-11, ", to within") == "111.808348347, to within 2e-11"
    assert measured(0.50836, 0.0063) == "0.5084 ± 0.0063"
    assert measured(5.689, 4.27) == "5.69 ± 4.3"
    assert measured(0.0, 0.5) == "0 ± 0.5"
    assert measured(2.5, None) == measured(2.5, math.nan) == "2.5"


def test_a_table_has_no_column_of_dashes(files):
    text = report([files / "track.h5"])
    heads = re.findall(r"<th [^>]*>(.*?)</th>", text)
    assert heads[:5] == ["step", "loss", "gradient norm", "largest", "2/η"]
    assert not {"trace", "rank", "noise floor", "largest bound"} & set(heads)
    rows = re.findall(r"<tr>(.*?)</tr>", text)[1:]
    assert [re.findall(r">([^<>]+)</td>", row)[0] for row in rows] == ["0", "1"]


def test_pictures_follow_a_dark_page(files):
    """Each colour of a picture is a variable, and the dark page has its counterpart."""
    text = report([files / "track.h5"])
    picture = re.search(r"<svg.*?</svg>", text, re.DOTALL)[0]
    colours = set(re.findall(r"(?:fill|stroke): (?:var\(--c-\w+, )?#(\w{6})", picture))
    assert not re.search(r"(?:fill|stroke): #", picture)
    dark = text[text.index("prefers-color-scheme: dark") :]
    for colour in colours:
        wanted = style.NIGHT[0] if colour == "ffffff" else style.at_night(f"#{colour}")
        assert f"--c-{colour}: {wanted};" in dark
    assert {"ffffff", "000000", "d55e00"} <= colours
    mapped = report([files / "landscape.h5"])  # what a colour bar explains stays
    assert re.search(r"fill: #[0-9a-f]{6}", mapped)


def test_the_smallest_probability_is_a_bound_in_every_table(files, tmp_path):
    found = hr.load(files / "levels.h5")
    law = replace(found.laws["gse"], p_value=1e-6, spacing_p_value=1 / 21, ratio_p_value=1 / 1001)
    found = replace(found, laws={"gse": law, "goe": replace(found.laws["goe"], p_value=0.37)})
    found.save(tmp_path / "levels.h5")
    text = report([tmp_path / "levels.h5"])
    cells = re.findall(r'<td data-v="([^"]+)">([^<]+)', text)
    assert {("1e-06", "≤ 1e-06"), (repr(1 / 21), "≤ 0.05"), ("0.37", "0.37")} <= set(cells)
    assert "p ≤ 0.001" in found.shown()["gse"]
    drawn = correlate(np.arange(10.0), np.arange(10.0))
    assert probability(drawn.p("kendall")) == "≤ 0.0001"
    assert probability(correlate(np.arange(5.0), np.arange(5.0)).p("kendall")) == "0.017"  # of all


def test_level_statistics_know_their_spectra(files, cli, tmp_path):
    asked = ["one.h5", "--surrogates", 0, "--seed", 3, "--window", "-9:9"]
    shutil.copy(files / "one.h5", tmp_path)
    assert cli("levels", *asked, "--out", "kept.h5").returncode == 0
    (section,) = sections_of(tmp_path / "kept.h5")
    source = hr.load(tmp_path / "one.h5").provenance
    assert source_in_words(source.config) in section.heading
    (again,) = re.findall("hessrmt (.*) --out levels.h5", section.command)
    assert sorted(again.split()) == sorted(["levels", *map(str, asked)])
    assert cli("levels", *asked, "--out", "kept.h5").returncode == 2  # is there
    assert cli("levels", *asked, "--out", "two.h5", "--compare").returncode == 2
    found = hr.levels.analyze(hr.load(tmp_path / "one.h5"), surrogates=0)
    found.save(tmp_path / "own.h5")
    (section,) = sections_of(tmp_path / "own.h5")
    assert not section.command
    assert source_in_words(source.config) in section.heading


def test_capacity_keeps_what_a_page_is_made_of(files, cli, tmp_path):
    for number in range(2):
        shutil.copy(files / f"net{number}.npz", tmp_path)
    asked = "--p-values", 19, "--compare", "lognormal", "--compare", "exponential"
    assert cli("capacity", "net0.npz", *asked, "--out", "one.h5").returncode == 0
    (section,) = sections_of(tmp_path / "one.h5")
    assert section.heading == "Capacity of a network"
    (again,) = re.findall("hessrmt (.*) --out capacity.h5", section.command)
    assert again.split() == ["capacity", "net0.npz", *map(str, asked)]
    assert cli("capacity", "net0.npz", "--out", "one.h5").returncode == 2  # is there
    assert cli("capacity", "net0.npz", "--out", "one.json").returncode == 2
    assert cli("capacity", "net0.npz", "net1.npz", "--out", "two.h5").returncode == 0
    assert len(hr.load(tmp_path / "two.h5").networks) == 2
    page = Page(report([tmp_path / "one.h5"])).said()
    assert "α̂ of the network: the sum" in page
    assert "The layer's term in α̂" not in page


def test_a_page_is_no_pdf(files, cli, tmp_path):
    done = cli("report", files / "track.h5", "--out", "x.pdf")
    assert done.returncode == 2
    assert ".html or .htm" in done.stderr
    assert not (tmp_path / "x.pdf").exists()


def spectra_of_batches(numbers, **config):
    items = tuple(Spectrum(np.array(values), 0.1, len(values), len(values)) for values in numbers)
    batches = np.zeros((len(items), 64), dtype=np.int64)
    return Spectra(items, batches, len(items), Provenance(config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"batch": 64},
            "All 3 eigenvalues of the Hessian of each of 2 batches of 64 samples .*"
            "Over the 2 batches the largest eigenvalue ranges from 4 to 5; the smallest ranges "
            "from -2 to -1, and 1 is below zero",
        ),
        ({"ensemble": "goe"}, "of each of 2 random matrices .*Over the 2 matrices the largest"),
        ({}, "of each of 2 matrices .*Over the 2 matrices the largest"),
        ({"batch": 64, "block": "body.0"}, "of block body.0 of the Hessian of each of 2 batches"),
    ],
)
def test_a_range_says_over_what(config, words):
    said = " ".join(findings(spectra_of_batches([[-1.0, 2, 4], [-2.0, 1, 5]], **config)))
    assert re.search(words, said), said
    one = " ".join(findings(spectra_of_batches([[-1.0, 2, 4]], **config)))
    assert "The largest eigenvalue is 4; the smallest is -1" in one


def test_blocks_of_a_file_stand_in_one_table(tmp_path):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 3) for _ in range(7)]
    pair = torch.randn(8, 3), torch.arange(8) % 3
    problem = hr.Problem(torch.nn.Sequential(*layers), "cross-entropy", pair)
    hr.spectrum(problem, blocks="layer").save(tmp_path / "blocks.h5")
    text = report([tmp_path / "blocks.h5"], surrogates=0)
    top = text[: text.index("<section")]
    assert "<ol>" not in top
    assert re.findall(r'<a href="#file-(\d)">blocks.h5, (\d)</a>', top) == [
        (str(i), str(i)) for i in range(7)
    ]
    assert "<h1>Sequential, 84 parameters, 8 samples: blocks.h5</h1>" in top
    assert "All 12 eigenvalues of block 3 of the Hessian of the mean loss over 8 samples" in text


def test_the_title_is_what_files_have_in_common(files):
    text = report([files / "one.h5", files / "landscape.h5"], surrogates=0)
    title = "Sequential, 53 parameters, 30 samples: one.h5, landscape.h5"
    assert f"<h1>{title}</h1>" in text
    assert "<h1>one.h5, capacity.h5</h1>" in report(
        [files / "one.h5", files / "capacity.h5"], surrogates=0
    )


def test_what_the_words_mean(files):
    text = report([files / f"{name}.h5" for name in ("one", "density", "levels", "capacity")])
    said = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text[text.index('id="words"') :]))
    terms = "trace", "Frobenius norm", "resolved", "Brody parameter", "⟨s²⟩", "Σ²(5)", "per decade"
    assert set(terms) <= said.keys()
    assert not {"log likelihood ratio error", "eigenvalue bound", "alpha error"} & said.keys()
    wrong = r"NaN|None|point of expansion|[^.] In \w+\.h5:"
    assert not [text for text in said.values() if re.search(wrong, text)]


def test_a_training_loss_has_one_name_for_each_way_of_taking_it(cli, tmp_path):
    asked = "--model", "logistic", "--epochs", 2, "--history", "history.h5", "--history-batch", 8
    assert cli("train", *asked, "--out", "run.pt").returncode == 0
    (run,), (history,) = (sections_of(tmp_path / name) for name in ("run.pt", "history.h5"))
    assert list(run.tables["Table"][0]) == ["epochs", "rate", "loss while training"]
    assert {"train_loss", "largest", "smallest", "rank"} <= history.tables["Table"][0].keys()
    assert "while the weights changed" in run.conclusions[0]
    assert run.words["loss while training"]
    axes = run.pictures.popitem()[1].axes
    assert [one.get_ylabel() for one in axes] == ["loss while training"]  # the rate is constant
    for panel in history.pictures.popitem()[1].axes[2:4]:
        assert len(panel.get_yticklabels(which="both")) <= 5


def test_it_says_where_results_from_python_come_from(files, tmp_path):
    (made,) = sections_of(files / "landscape.h5", 0)
    assert "Computed from Python by hessrmt.landscape: Sequential, 53 parameters" in made.origin
    assert made.heading == "Loss along eigenvectors: Sequential, 53 parameters, 30 samples"
    found = hr.load(files / "one.h5").provenance.config
    assert [found[name] for name in ("call", "samples")] == ["hessrmt.spectrum", 30]
    Spectrum(np.array([1.0, 2.0]), 0.1, 2, 2).save(tmp_path / "old.h5")
    (old,) = sections_of(tmp_path / "old.h5", 0)
    assert "doesn't say of which network" in old.origin
    assert old.heading == "Eigenvalues"


def test_the_folder_of_an_experiment(tmp_path):
    with pytest.raises(StoreError, match=r"results\.h5"):
        report([tmp_path])
    said = {"all": f"consistent with {EVIL}"}
    rows = [{"panel": "(a)", "σ": "+0.7"}, {"panel": "(b)", "σ": "-0.3"}]
    made = ExperimentResult("kind", EVIL, "small", said, rows, [{"panel": "a", "sigma": 0.7}])
    made.save(tmp_path / "results.h5")
    (tmp_path / "figures").mkdir()
    style.panels("a picture")[0].savefig(tmp_path / "figures" / "one.png")
    text = report([tmp_path])
    page = Page(text)
    assert EVIL not in text
    assert page.open == []
    assert not page.fetched
    assert f"All: consistent with {EVIL}." in page.text
    assert page.tags.count("img") == 1
    assert "+0.7" in page.text
    assert list(hr.load(tmp_path / "results.h5").table) == rows


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_it_without_a_complaint(files, tmp_path):
    path = tmp_path / "page.html"
    text_of_page = report([files / f"{name}.h5" for name in NAMES], surrogates=0)
    path.write_text(text_of_page)
    words = (
        "--headless --no-sandbox --disable-gpu --enable-logging=stderr --virtual-time-budget=3000"
    )
    script = """
const wide = [...document.querySelectorAll("table")].map((one) => one.parentNode);
const texts = [...document.querySelectorAll("svg text")].map((one) => one.getBoundingClientRect());
const ground = (one) => getComputedStyle(one).backgroundColor;
document.title = JSON.stringify({
  content: document.documentElement.scrollWidth, inner: innerWidth,
  cut: wide.filter((one) => one.scrollWidth > one.clientWidth).length,
  figures: [...document.querySelectorAll("figure .wide")].filter(
    (one) => one.scrollWidth > one.clientWidth).length,
  shown: [...document.querySelectorAll("figure svg")].filter(
    (one) => one.getBoundingClientRect().width > 0).length,
  letters: Math.min(...texts.map((one) => Math.min(one.width, one.height)).filter((x) => x > 0)),
  page: ground(document.body), figure: ground(document.querySelector("figure")),
});"""
    for width, dark in ((400, True), (1400, False)):
        look = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        how = [*words.split(), look, f"--window-size={width},2000"]
        wide = path.read_text().replace("</body>", f"<script>{script}</script></body>")
        (tmp_path / "wide.html").write_text(wide)
        done = subprocess.run(
            [
                *("chromium", *how, f"--user-data-dir={tmp_path}/{width}"),
                *("--dump-dom", (tmp_path / "wide.html").as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ":CONSOLE" not in done.stderr
        found = json.loads(unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
        assert found["content"] <= found["inner"]  # nothing sticks out at the side
        assert not found["figures"]  # all of a picture is seen, on a phone too
        assert found["shown"] == text_of_page.count("<figure")
        assert width < 1000 or not found["cut"]  # no table need be scrolled on a screen
        assert found["letters"] >= 3  # a full stop's width; a digit is twice as wide
        grounds = [
            sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("page", "figure")
        ]
        assert all((ground < 200) == dark for ground in grounds)  # of 765
