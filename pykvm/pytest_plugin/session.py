"""The guests of a session, of a module and of a test: the work of the fixtures."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import pytest

from pykvm.cache import cache_folder
from pykvm.errors import PykvmError, UsageError
from pykvm.forms import size
from pykvm.guest.boot import boot
from pykvm.guest.guest import Guest
from pykvm.guest.snapshot import Snapshot
from pykvm.kvm.errors import KvmUnavailable
from pykvm.machine.disks import Disk
from pykvm.pytest_plugin.artefacts import Artefacts, slug
from pykvm.pytest_plugin.outcomes import Outcomes, hide_own_frames, kernel_failure
from pykvm.pytest_plugin.places import Places, usable_memory
from pykvm.pytest_plugin.pool import Pool, prepare
from pykvm.pytest_plugin.spec import Spec, merged
from pykvm.pytest_plugin.watched import Make, Watched
from pykvm.trace.log import TraceLog


class Session:
    """A session of pytest: its settings, its snapshots, and its places for guests."""

    def __init__(self, config: pytest.Config) -> None:
        """UsageError."""
        self.fail_on: list[str] = config.getini("pykvm_fail_on")
        self.missing_kvm: str = config.getini("pykvm_missing_kvm")
        if self.missing_kvm not in ("skip", "fail"):
            raise UsageError(
                f"pykvm_missing_kvm cannot be '{self.missing_kvm}'", "use skip or fail"
            )
        self.traced = config.getoption("--pykvm-trace") != "off"
        self.outcomes = Outcomes(config)
        memory = config.getini("pykvm_memory")
        most = size("pykvm_memory", memory) if memory else usable_memory()
        self.places = Places(cache_folder(), most, lambda text: _say(config, text))
        self.pool = Pool(self.places)
        hide_own_frames()

    def watched(self, spec: Spec, snapshot: Snapshot | None) -> Watched:
        """A guest of ``spec`` for a test, which begins at ``snapshot``, or else boots."""
        place = self.places.take(spec.memory)
        return Watched(spec, _from(spec, snapshot), place, traced=self.traced)

    def close(self) -> None:
        """Free the snapshots."""
        self.pool.close()


class Module:
    """The guests that the tests of a module share, one for each spec. A context manager."""

    def __init__(self) -> None:
        self._shared: list[tuple[Spec, Watched]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with ExitStack() as stack:
            for _, watched in self._shared:
                stack.callback(watched.close)
        self._shared.clear()

    def put_back(self, spec: Spec, snapshot: Snapshot) -> Watched | None:
        """The guest of ``spec``, put back to ``snapshot``; None if there is none to put back."""
        for shared in self._shared:
            if shared[0].same_guest(spec):
                try:
                    usable = shared[1].put_back(spec, snapshot)
                except PykvmError:  # it hangs, for instance
                    usable = False
                if usable:
                    return shared[1]
                self._shared.remove(shared)
                shared[1].close()
                break
        return None

    def add(self, spec: Spec, watched: Watched) -> None:
        """Take over ``watched``, a guest of ``spec``."""
        self._shared.append((spec, watched))


class Test:
    """A test and its guests. A context manager, whose end closes those that it does not share."""

    __test__ = False

    def __init__(
        self,
        session: Session,
        item: pytest.Item,
        project: Mapping[str, Any],
        artefacts: Callable[[], Path],
    ) -> None:
        """``project`` is the spec of all tests. ``artefacts`` tells the folder of all files."""
        self._session = session
        self._own = ExitStack()
        self._guests: list[Watched] = []
        self._artefacts = Artefacts(artefacts, slug(item.nodeid))
        marks = reversed(list(item.iter_markers("pykvm")))
        self._layers = [project]
        for mark in marks:
            if mark.args:
                raise UsageError(
                    "the marker pykvm takes keywords only", "such as pykvm(memory='128M')"
                )
            self._layers.append(mark.kwargs)
        self._spec = merged(self._layers, session.fail_on)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._guests.clear()
        self._own.close()

    # -- fixtures ------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """See the fixture pykvm_snapshot."""
        with self._told():
            return self._session.pool.snapshot(self._spec)

    def fork(self) -> Guest:
        """See the fixture pykvm_guest."""
        with self._told():
            return self._begin(self._spec, self._session.pool.snapshot(self._spec))

    def boot(self) -> Guest:
        """See the fixture pykvm_machine."""
        with self._told():
            return self._begin(self._spec, None)

    def make(self, **keywords: Any) -> Guest:
        """A guest for the test; ``keywords`` change its spec. See the fixture pykvm_factory."""
        spec = merged([*self._layers, keywords], self._session.fail_on)
        return self._begin(spec, self._session.pool.snapshot(spec) if spec.has_agent else None)

    def share(self, module: Module) -> Guest:
        """See the fixture pykvm_shared_guest."""
        with self._told():
            snapshot = self._session.pool.snapshot(self._spec)
            watched = module.put_back(self._spec, snapshot)
            if watched is None:
                watched = self._session.watched(self._spec, snapshot)
                module.add(self._spec, watched)
            self._guests.append(watched)
            return watched.guest

    def _told(self) -> AbstractContextManager[None]:
        return told(self._session.missing_kvm)

    def _begin(self, spec: Spec, snapshot: Snapshot | None) -> Guest:
        watched = self._session.watched(spec, snapshot)
        self._guests.append(watched)
        self._own.callback(watched.close)
        return watched.guest

    # -- the result ----------------------------------------------------------------

    def check(self) -> None:
        """Fail the test, which has passed, if a guest's kernel has reported a failure."""
        for watched in self._guests:
            if failure := kernel_failure(watched):
                pytest.fail(failure, pytrace=False)

    def report(self, report: pytest.TestReport) -> None:
        """Add the guests to ``report``, and write their files, as the options say."""
        if report.when != "teardown" and self._guests:
            self._session.outcomes.add(report, self._guests, self._artefacts)


def first_disk(guest: Guest) -> Disk:
    """See the fixture pykvm_disk."""
    with told("fail"):
        if not guest.disks:
            raise UsageError("this guest has no disk", "give it one: pykvm(disk='64M')")
    return guest.disks[0]


def _say(config: pytest.Config, text: str) -> None:
    """Show ``text`` at once, also where pytest captures the output of tests."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\npykvm: {text}", file=sys.stderr, flush=True)


def _from(spec: Spec, snapshot: Snapshot | None) -> Make:
    """Makes a guest that begins at ``snapshot``, or else boots."""
    if snapshot is not None:
        return lambda trace: snapshot.restore(trace=trace)
    options = dict(spec.options) | {"cold": True}

    def start(trace: TraceLog | None) -> Guest:
        guest = boot(**options, trace=trace)
        try:
            if spec.has_agent:
                prepare(guest, spec)
        except BaseException:
            guest.close()
            raise
        return guest

    return start


@contextmanager
def told(missing_kvm: str) -> Iterator[None]:
    """Turns errors of pykvm into pytest's: a sentence without a traceback.

    On a host without KVM the test is skipped, if ``missing_kvm`` is ``"skip"``.
    """
    __tracebackhide__ = True
    try:
        yield
    except KvmUnavailable as error:
        if missing_kvm == "skip":
            raise pytest.skip.Exception(str(error)) from None
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    except PykvmError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
