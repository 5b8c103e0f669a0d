"""The pytest plugin: guests and disks as fixtures. docs/howto/test-with-pytest.md explains it.

pytest imports this module in every run on a host that has pykvm, so it imports nothing more of
pykvm until a fixture is used.

===================  ==========================================================
module               contents
===================  ==========================================================
``settings``         the options, the ini options and the marker
``spec``             the guest that a test asks for: its keywords, and their merging
``session``          the fixtures' work: guests of a session, of a module, of a test
``pool``             snapshots of prepared guests, one for each spec
``places``           the bound of guests that run at once, over all processes
``watched``          a guest of a test, with its commands and its trace
``kernel_reports``   the kernel's own reports in a console's text (pure)
``report``           a guest in the report of a test that failed
``artefacts``        the files that a test leaves
``crash``            recordings of a disk, and checks of power cuts
===================  ==========================================================
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest

from pykvm.pytest_plugin import settings

TYPE_CHECKING = False  # a type checker takes it for True

if TYPE_CHECKING:
    from typing import Any

    from pykvm.guest.guest import Guest
    from pykvm.guest.snapshot import Snapshot
    from pykvm.machine.disks import Disk
    from pykvm.pytest_plugin.crash import CrashTest
    from pykvm.pytest_plugin.session import Module, Session, Test

SESSION: "pytest.StashKey[Session]" = pytest.StashKey()
"""The guests of the session, in the stash of its Config; there once a fixture is used."""
TEST: "pytest.StashKey[Test]" = pytest.StashKey()
"""The guests of a test, in the stash of its Item."""


# -- hooks ---------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the command line and of the ini file."""
    settings.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", settings.MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that passes fails if the kernel of its guest has reported a failure."""
    result = yield
    if (test := item.stash.get(TEST, None)) is not None:
        test.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> "Generator[None, pytest.TestReport, pytest.TestReport]":
    """The report of a test that fails tells of its guests."""
    report = yield
    if (test := item.stash.get(TEST, None)) is not None:
        test.report(report)
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Free the snapshots."""
    if (session := config.stash.get(SESSION, None)) is not None:
        session.close()


# -- fixtures ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pykvm_spec() -> "Mapping[str, Any]":
    """The guest of all tests, as keywords of ``pykvm.boot``. A project overrides this fixture."""
    return {}


@pytest.fixture(scope="module")
def _pykvm_module() -> "Iterator[Module]":
    from pykvm.pytest_plugin.session import Module

    with Module() as module:
        yield module


@pytest.fixture
def _pykvm_test(
    request: pytest.FixtureRequest,
    pykvm_spec: "Mapping[str, Any]",
    tmp_path_factory: pytest.TempPathFactory,
) -> "Iterator[Test]":
    from pykvm.pytest_plugin.session import Session, Test, told

    stash, option = request.config.stash, request.config.getoption("--pykvm-artefacts")

    def artefacts() -> Path:
        if option:
            # A test may change the working directory.
            return Path(request.config.invocation_params.dir, option)
        return tmp_path_factory.getbasetemp() / "pykvm"

    with told("fail"):
        if SESSION not in stash:
            stash[SESSION] = Session(request.config)
        made = Test(stash[SESSION], request.node, pykvm_spec, artefacts)
    with made as test:
        request.node.stash[TEST] = test
        yield test


@pytest.fixture
def pykvm_snapshot(_pykvm_test: "Test") -> "Snapshot":
    """The snapshot of a booted, prepared guest, from which the guests of the tests begin."""
    return _pykvm_test.snapshot()


@pytest.fixture
def pykvm_guest(_pykvm_test: "Test") -> "Guest":
    """A guest for this test alone, which has booted and is prepared; its disks are as new."""
    return _pykvm_test.fork()


@pytest.fixture
def pykvm_shared_guest(_pykvm_test: "Test", _pykvm_module: "Module") -> "Guest":
    """One guest for the tests of a module, put back before each of them."""
    return _pykvm_test.share(_pykvm_module)


@pytest.fixture
def pykvm_machine(_pykvm_test: "Test") -> "Guest":
    """A guest that boots in this test; with a kernel of one's own, it has no agent."""
    return _pykvm_test.boot()


@pytest.fixture
def pykvm_disk(request: pytest.FixtureRequest) -> "Disk":
    """The first disk, /dev/vda, of the guest that the test uses."""
    from pykvm.pytest_plugin.session import first_disk

    names = [
        name for name in ("pykvm_shared_guest", "pykvm_machine") if name in request.fixturenames
    ]
    return first_disk(request.getfixturevalue(names[0] if names else "pykvm_guest"))


@pytest.fixture
def pykvm_factory(_pykvm_test: "Test") -> "Callable[..., Guest]":
    """A function that makes guests for this test; its keywords change the test's own spec."""
    return _pykvm_test.make


@pytest.fixture
def pykvm_crash(request: pytest.FixtureRequest, tmp_path: Path) -> "CrashTest":
    """Records a workload of the test's guest, and checks the contents after power cuts."""
    from pykvm.pytest_plugin.crash import CrashTest
    from pykvm.pytest_plugin.session import told

    with told("fail"):
        return CrashTest(lambda: request.getfixturevalue("pykvm_guest"), tmp_path, request.config)
