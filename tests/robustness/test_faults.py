"""Commands that are killed, or run out of space or memory, lose nothing; wrong ones say why."""

import command_lines
import disk_full
import kills
import memory
import pytest
from cases import CASES


def faults(outcomes):
    """What is wrong; something must have been struck."""
    found = list(outcomes)
    assert any(struck for _, struck, _ in found)
    return [f"{what}: {fault}" for what, _, wrong in found for fault in wrong]


@pytest.mark.parametrize("name", ["spectrum", "simulate, extended"])
def test_a_sample_of_kills(program, undisturbed, name):
    assert faults(kills.sweep(program, undisturbed(name), 2, 0, 0)) == []


def test_killed_between_a_row_and_the_flag_that_it_is_done(program, undisturbed):
    """The row counts by its checksums; whoever continues the file sets the flag, too."""
    case = undisturbed("simulate")
    modes = (("kill before", at) for at in range(case.points - 4, case.points + 1))
    assert (
        faults((f"{m} {at}", *kills.check(program, case, mode=m, at=at)) for m, at in modes) == []
    )


def test_a_sample_of_full_disks(program, undisturbed):
    assert faults(disk_full.sweep(program, undisturbed("simulate"), 3)) == []


def test_a_sample_of_memory_that_runs_out(program, undisturbed):
    assert faults(memory.sweep(program, undisturbed("simulate"), 3)) == []


@pytest.mark.parametrize("raised", memory.WAYS)
def test_memory_that_runs_out_while_torch_computes(program, undisturbed, raised):
    outcomes = [(raised, *memory.check(program, undisturbed("spectrum"), raised=raised, at=200))]
    assert faults(outcomes) == []


def test_a_sample_of_wrong_command_lines(program, tmp_path):
    place = command_lines.Place(program, tmp_path.resolve() / "place")
    for _, words, files in command_lines.drawn(10, seed=1):
        assert place.wrong(words, files) == [], words


# all of it


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kills(program, undisturbed, name):
    assert faults(kills.sweep(program, undisturbed(name), 40, 10, 1)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_full_disks(program, undisturbed, name):
    assert faults(disk_full.sweep(program, undisturbed(name), 20)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.COMPUTING)
def test_memory_that_runs_out(program, undisturbed, name):
    assert faults(memory.sweep(program, undisturbed(name), 8)) == []


@pytest.mark.slow
def test_wrong_command_lines(program, tmp_path):
    place = command_lines.Place(program, tmp_path.resolve() / "place")
    lines = command_lines.drawn(200, seed=0)
    wrong = {
        " ".join(words): found
        for number, (_, words, files) in enumerate(lines)
        if (found := place.wrong(words, files, real=number < 10))
    }
    assert wrong == {}
