"""The layout arithmetic against dealing blocks out one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hessrmt.backend.distributed import Grid, Layout, lay_out, owned, process_grid
from hessrmt.errors import ConfigError

sizes = st.integers(1, 200)
few = st.integers(1, 9)


def dealt(n, block, processes):
    """Whose each of n rows is: block after block, to one process after the other."""
    owners = []
    while len(owners) < n:
        owners += [(len(owners) // block) % processes] * block
    return np.array(owners[:n])


@given(n=sizes, block=few, processes=few)
def test_every_row_is_dealt_once_and_where_the_cards_say(n, block, processes):
    owners = dealt(n, block, processes)
    for process in range(processes):
        assert (
            owned(n, block, process, processes).tolist()
            == np.flatnonzero(owners == process).tolist()
        )


@given(n=sizes, block=few, rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_the_parts_make_up_the_matrix(n, block, rows, columns):
    grid = Grid(rows, columns)
    seen = np.zeros((n, n), dtype=int)
    layouts = [Layout(n, block, grid, rank) for rank in range(rows * columns)]
    for layout in layouts:
        seen[np.ix_(layout.rows, layout.columns)] += 1
    assert (seen == 1).all()
    assert max(layout.entries for layout in layouts) == layouts[0].most_entries


def test_processes_are_numbered_down_the_columns_as_blacs_does_with_order_c():
    grid = Grid(2, 3)
    assert [grid.place(rank) for rank in range(6)] == [(r, c) for c in range(3) for r in range(2)]


@pytest.mark.parametrize("processes", [*range(1, 65), 97, 144])
def test_the_grid_takes_all_processes_and_is_as_square_as_can_be(processes):
    grid = process_grid(processes)
    assert grid.rows * grid.columns == processes
    divisors = [r for r in range(1, processes + 1) if processes % r == 0]
    assert abs(grid.columns - grid.rows) == min(abs(processes // r - r) for r in divisors)
    assert grid.rows <= grid.columns


@given(n=st.integers(1, 3000), processes=st.integers(1, 40), largest=st.sampled_from([1, 32, 64]))
def test_no_process_stays_empty_and_blocks_are_powers_of_two(n, processes, largest):
    grid = process_grid(processes)
    if n < grid.columns:
        with pytest.raises(ConfigError, match="start fewer processes"):
            lay_out(n, grid, 0, largest)
        return
    for rank in range(processes):
        layout = lay_out(n, grid, rank, largest)
        assert layout.entries > 0
        assert layout.block <= largest
        assert layout.block & (layout.block - 1) == 0


def test_large_matrices_are_dealt_evenly():
    grid = process_grid(144)
    layouts = [lay_out(20_060, grid, rank, 64) for rank in range(144)]
    # in each direction at most one block more than the mean
    mean = (20_060 / 12) ** 2
    assert max(layout.entries for layout in layouts) <= (20_060 / 12 + 64) ** 2
    assert sum(layout.entries for layout in layouts) / 144 == pytest.approx(mean)
