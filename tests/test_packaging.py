"""What is installed: complete, typed, honest about its dependencies, and silent at import."""

import ast
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import hessrmt
from hessrmt import config, experiments

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
OPTIONAL = {"cupy", "dask", "distributed", "lightning", "mpi4py", "nccl", "nvmath", "transformers"}
"""Imported only where they are installed; extras."""


def normal(requirement):
    """The canonical name (PEP 503) of the distribution that a requirement asks for."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def python(code):
    """What a fresh interpreter prints for some code, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def imported():
    """Names of everything outside the standard library that some module of hessrmt imports."""
    found = set()
    for path in Path(hessrmt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"hessrmt"}


def test_version_and_citation():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PYPROJECT["project"]
    assert hessrmt.__version__ == importlib.metadata.version("hessrmt") == project["version"]
    # what CFF 1.2.0 requires, of the software and of each reference
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    for item in found["references"]:
        assert {"type", "title", "authors"} <= set(item)
        for author in item["authors"]:
            assert "name" in author or {"given-names", "family-names"} <= set(author)
    assert found["authors"] == project["authors"]
    for name in ("version", "license", "keywords"):
        assert found[name] == project[name]
    assert found["title"] == project["name"]
    # in the source distribution
    assert "/CITATION.cff" in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]


def test_references():
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    entry = r"^@[a-z]+\{([a-z]+(\d{4})[a-z]?),\n((?:  [a-z]+ = \{.*\},\n)+)\}$"
    entries = re.findall(entry, text, re.MULTILINE)
    keys = [key for key, _, _ in entries]
    # every entry was understood, each key names first author and year, and none comes twice
    assert len(keys) == text.count("@")
    assert keys == sorted(set(keys))
    for key, year, fields in entries:
        assert f"  year = {{{year}}}," in fields, key
        assert "author = " in fields, key


def test_option_tables_are_those_of_the_commands():
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "option_tables.py"], capture_output=True, check=True
    )
    kept = (ROOT / "docs" / "options.md").read_bytes()
    assert made.stdout == kept, "python scripts/option_tables.py > docs/options.md"


def test_public_names_resolve():
    assert all(getattr(hessrmt, name) is not None for name in hessrmt.__all__)
    assert set(hessrmt.__all__) <= set(dir(hessrmt))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hessrmt.nonsense


def test_what_is_imported_is_declared():
    # a package that is only there because another one brought it may be gone tomorrow
    owners = importlib.metadata.packages_distributions()
    declared = {normal(item) for item in PYPROJECT["project"]["dependencies"]}
    undeclared = {
        name
        for name in imported() - OPTIONAL
        if not declared & {normal(owner) for owner in owners.get(name, [])}
    }
    assert not undeclared


def test_direct_dependencies_are_pinned():
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *extras["test"], *extras["dev"]]
    wanted += [*extras["docs"], *extras["tutorials"]]
    assert {normal(item) for item in wanted} - {"hessrmt"} <= {normal(pin) for pin in PINS}
    assert len(PINS) == len(set(PINS))


def test_nothing_happens_at_import():
    modules = [module.name for module in pkgutil.walk_packages(hessrmt.__path__, prefix="hessrmt.")]
    assert len(modules) > 20
    before, after = python(
        "import importlib, json, logging, os\n"
        "import matplotlib, numpy, torch\n"
        "def state():\n"
        "    log = logging.getLogger()\n"
        "    draws = torch.get_rng_state().numpy().tobytes(), str(numpy.random.get_state())\n"
        "    return [str(torch.get_default_dtype()), torch.get_num_threads(),\n"
        "            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),\n"
        "            torch.get_float32_matmul_precision(), torch.random.initial_seed(),\n"
        "            hash(draws), torch.cuda.is_initialized(), list(map(str, log.handlers)),\n"
        "            log.level, numpy.geterr(), hash(str(matplotlib.rcParams)),\n"
        "            hash(str(sorted(os.environ.items()))), os.getcwd()]\n"
        "before = state()\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps([before, state()]))"
    )
    assert after == before


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_settings_file_loads(path):
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    if "experiment" in given:
        assert experiments.load(path)[1].experiment == given["experiment"]
        return
    # its name begins with that of a command
    kind = getattr(config, path.stem.partition("-")[0].title() + "Config")
    settings = config.load_settings(kind, path)
    if path.stem.endswith("-mlp3-mnist"):  # spells out the defaults
        split = {"split": "test"} if "split" in given else {}
        assert settings == kind(**split)
        # TOML has no null: what is None by default can only be left out
        fields = kind.model_fields.items()
        assert {name for name, field in fields if field.default is not None} <= set(given)


@pytest.mark.slow
def test_wheel_is_complete(tmp_path):
    pytest.importorskip("build", reason="the dev extra is not installed")
    # hatchling from this environment if it is here, else from the package index
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", *isolation, "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    # the same bytes as in the source tree, by way of the source distribution
    for folder in ("csrc", "configs", "hessrmt"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                name = name if folder == "hessrmt" else f"hessrmt/{name}"
                assert inside.pop(name) == path.read_bytes(), name
    info = f"hessrmt-{hessrmt.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in inside
    assert f"{info}/licenses/hessrmt/problems/assets/mnist10k.LICENSE.md" in inside
    assert {name.partition("/")[0] for name in inside} == {info}
