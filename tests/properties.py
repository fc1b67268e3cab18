"""How Hypothesis looks for counterexamples: the same ones in every run, or at random.

Plain ``pytest`` repeats itself exactly. ``pytest -m fuzz`` draws twenty times as many examples at
random and keeps what failed in ``.hypothesis/examples``, to be tried first the next time.
"""

import hypothesis
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.internal.conjecture import providers

USUAL = 100
MANY = 20 * USUAL


def examples(number):
    """How many examples a test takes; ``-m fuzz`` takes twenty times as many."""
    return number * hypothesis.settings().max_examples // USUAL


def load_profile(config):
    """The profile of this run, unless ``--hypothesis-profile`` names another."""
    # no clock: whether an example, or drawing it, takes long depends on what else the machine does
    common = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
    register = hypothesis.settings.register_profile
    register("repeat", max_examples=USUAL, derandomize=True, database=None, **common)
    kept = DirectoryBasedExampleDatabase(config.rootpath / ".hypothesis" / "examples")
    register("fuzz", max_examples=MANY, database=kept, print_blob=True, **common)
    if config.getoption("hypothesis_profile", None):
        return
    if config.option.markexpr.strip() == "fuzz":
        hypothesis.settings.load_profile("fuzz")
        return
    hypothesis.settings.load_profile("repeat")
    # constants of the modules that happen to be loaded are tried too: none here, since which ones
    # are depends on the tests that ran before
    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = providers.Constants


def mark(items):
    """``fuzz`` on every test that states a property."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("fuzz")
