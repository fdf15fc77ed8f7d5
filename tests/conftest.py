"""Settings of all tests: the `--soak` option, hypothesis profiles, and the rule that
interoperability tests do not skip if their peers are installed.  Knows nothing of
phoenix_trio itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# Random each time, so that machines keep exploring; a failure prints the blob that
# `@reproduce_failure` takes, and the local example database replays it on the next run.
# No deadline: the time of one example says more about the machine than about the code.
# (`derandomize` is spelled out because hypothesis turns it on when it detects a CI.)
settings.register_profile("default", deadline=None, print_blob=True, derandomize=False)
settings.register_profile(
    "ci",
    parent=settings.get_profile("default"),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("soak", parent=settings.get_profile("ci"), max_examples=5_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        action="store_true",
        default=False,
        help="also run the tests marked 'soak', and many more hypothesis examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Many tests start programs.  Those compile the package once, in a place of their own, also
    # where the environment forbids bytecode beside the sources: that halves their start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(config.rootpath / "build" / "pycache"))
    # A shell that runs the tests in the background has them ignore SIGINT, and the programs that
    # they interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--hypothesis-profile", default=None) is not None:
        return
    if config.getoption("--soak"):
        settings.load_profile("soak")
    elif os.environ.get("CI"):
        settings.load_profile("ci")
    else:
        settings.load_profile("default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak") is not None:
            # In front: a test with both marks, soak and interop, then skips for this reason.
            item.add_marker(pytest.mark.skip(reason="needs --soak"), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and os.environ.get("PHOENIX_REQUIRE_INTEROP") == "1"
        and item.get_closest_marker("interop") is not None
        and (item.get_closest_marker("soak") is None or item.config.getoption("--soak"))
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(reason).removeprefix("Skipped: ").startswith("absent: "):
            return report  # reported by the matrix for a peer that could not be installed
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped ({reason}), but PHOENIX_REQUIRE_INTEROP=1 says that "
            "the programs which interoperability tests need are installed here"
        )
    return report
