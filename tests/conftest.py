"""Shared rules of the suite: where each test runs, and that it leaves nothing behind."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest
from forms import affected
from patience import linux_patience, patience

from pykvm.cache import cache_folder
from pykvm.virtio import split

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("pykvm", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("pykvm")

WORKER = "PYTEST_XDIST_WORKER"
"""The variable that a process of pytest-xdist has."""
REQUIRE_KVM = os.environ.get("PYKVM_REQUIRE_KVM") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--affected",
        action="store_true",
        help="only tests that the form of the hot path can affect (tests/helpers/forms.py)",
    )


def pytest_configure() -> None:
    """Give the session its own cache, and reset ignored signals.

    A background job inherits these, and programs under test would keep them.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ours)
    if WORKER not in os.environ:
        os.environ["PYKVM_CACHE"] = own_cache()


def pytest_unconfigure() -> None:
    """Remove the session's cache."""
    if WORKER not in os.environ:
        shutil.rmtree(os.environ["PYKVM_CACHE"], ignore_errors=True)


def own_cache() -> str:
    """A new cache folder for this session, in which only builds are those of the user.

    The processes of pytest-xdist inherit it, so the first one that needs a template makes it for
    all.
    """
    folder = Path(tempfile.mkdtemp(prefix="pykvm-tests-"))
    if users := cache_folder():
        for builds in ("bare", "guest"):
            (Path(users).absolute() / builds).mkdir(parents=True, exist_ok=True)
            (folder / builds).symlink_to(Path(users).absolute() / builds)
    return str(folder)


def form() -> str:
    """The form of the hot path that runs (speed/README.md)."""
    return "interpreted" if (split.__file__ or "").endswith(".py") else "compiled"


def pytest_report_header() -> str:
    """Report the tested form; end the run if PYKVM_FORM demands the other one."""
    wanted = os.environ.get("PYKVM_FORM", form())
    if wanted != form():
        raise pytest.UsageError(f"the hot path is {form()}, not {wanted}: see speed/README.md")
    return f"hot path: {form()}"


def kvm_problem() -> str:
    """Why KVM tests cannot run here; "" if they can."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip KVM tests with the reason, or fail the run if PYKVM_REQUIRE_KVM=1."""
    if config.getoption("affected"):
        parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            parts[affected(item.path) and not item.get_closest_marker("one_form")].append(item)
        config.hook.pytest_deselected(items=parts[False])
        items[:] = parts[True]
    if form() == "compiled":
        for item in items:
            if item.get_closest_marker("interpreted"):
                item.add_marker(pytest.mark.skip(reason="the hot path is compiled"))
    wanting = [item for item in items if item.get_closest_marker("kvm")]
    problem = kvm_problem() if wanting else ""
    if not problem:
        return
    if REQUIRE_KVM:
        raise pytest.UsageError(f"PYKVM_REQUIRE_KVM=1, but {problem}")
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason=problem))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Stretch the limit of pytest-timeout like all others, unless --timeout is given."""
    if item.config.getoption("timeout") is None:
        mark = item.get_closest_marker("timeout")
        seconds = float(mark.args[0] if mark else item.config.getini("timeout"))
        stretch = linux_patience if item.get_closest_marker("linux") else patience
        item.add_marker(pytest.mark.timeout(stretch(seconds)), append=False)
    return (yield)


@pytest.fixture(autouse=True)
def _no_descriptor_leaks(request: pytest.FixtureRequest):
    """A test that marks itself ``kvm`` must close every descriptor that it opened."""
    if not request.node.get_closest_marker("kvm"):
        yield
        return
    before = open_descriptors()
    yield
    leaked = {fd: name for fd, name in open_descriptors().items() if fd not in before}
    assert not leaked, f"descriptors left open: {leaked}"


def open_descriptors() -> dict[int, str]:
    """The open file descriptors of this process and their targets."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue
    return found
