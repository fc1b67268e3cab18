"""The server of runs that something goes wrong with, shared by these tests."""

import pytest
from cases import CASES, WARM, Undisturbed, write_inputs
from faults import POSSIBLE, Program


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if not POSSIBLE:
        pytest.skip("needs Linux and a C compiler")
    with Program(WARM, write_inputs(tmp_path_factory.mktemp("faults") / "warm")) as program:
        yield program


@pytest.fixture
def undisturbed(program, tmp_path):
    """A case without a fault, by its name."""
    return lambda name: Undisturbed(program, tmp_path.resolve() / "case", CASES[name])
