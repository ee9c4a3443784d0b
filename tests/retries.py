"""A pytest plugin for CI: a test on a real guest may be tried again, and that is told.

``-p tests.retries --reruns=1``, with pytest-rerunfailures. A machine that was
busy for a moment rejects no change; a test that needs its second try every day
is seen, and so is a change that makes many need it.
"""

from __future__ import annotations

import pytest

MOST = 2
"""How many tests of a run may need their second try."""


def _first_tries(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return list(reporter.stats.get("rerun", [])) if reporter else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which too many were tried again."""
    if len(_first_tries(session.config)) > MOST and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name each, with the first line of its first error."""
    tried = _first_tries(config)
    if not tried:
        return
    terminalreporter.section("tried again")
    for report in tried:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash else report.longrepr).strip().partition("\n")[0]
        terminalreporter.write_line(f"{report.nodeid}: {why}")
    if len(tried) > MOST:
        terminalreporter.write_line(
            f"ERROR {len(tried)} tests were tried again, more than {MOST}: the run failed"
        )
