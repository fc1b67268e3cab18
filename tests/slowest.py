"""Which tests take long: writes tests/slow.txt, whose tests are marked ``slow``.

    pytest -m "" --durations=0 --durations-min=0.3 | tee tests.log
    python tests/slowest.py tests.log

Of a function with several cases the fastest stays in the default run, if it takes a second at most.
"""

import collections
import re
import sys
from pathlib import Path

SLOW = 0.7
"""Seconds from which a test is slow, on a machine with two cores."""

KEPT = 1.0
"""Seconds that the fastest case of a function may take."""

ALWAYS = (
    "tests/test_runs.py::test_goe_is_seldom_excluded_from_few_units_and_p_values_are_uniform",
    "tests/robustness/test_damage.py::test_a_sample_of_damaged_files[spectra.h5]",
)
"""Samples of what ``hessrmt reproduce controls`` and the sweep of damaged files do at length."""

LIST = Path(__file__).with_name("slow.txt")
_LINE = re.compile(r"\s*([\d.]+)s call\s+(\S.*?)\s*")


def slow_tests(lines):
    """Names of the slow ones among the tests whose durations a run has printed."""
    cases = collections.defaultdict(list)
    for line in lines:
        if found := _LINE.fullmatch(line):
            cases[found[2].partition("[")[0]].append((float(found[1]), found[2]))
    slow = []
    for of_one in cases.values():
        of_one.sort()
        first = 1 if of_one[0][0] <= KEPT else 0
        slow += [name for seconds, name in of_one[first:] if seconds >= SLOW]
    return sorted({*slow} - {*ALWAYS})


def main():
    with open(sys.argv[1], encoding="utf-8") as log:
        names = slow_tests(log)
    LIST.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{len(names)} slow tests")


if __name__ == "__main__":
    main()
