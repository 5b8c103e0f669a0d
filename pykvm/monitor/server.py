"""Serves the clients of a machine's monitor.

::

    events of the machine ─┐                       ┌─► client
    answers of the worker ─┴► inbox ──► monitor ───┼─► client
                                           │       └─► client
                                           └─► worker: slow commands

The monitor's thread sleeps in epoll and carries out all quick commands. Slow
commands, such as ``stop`` and ``cont``, may take as long as a disk does. A
worker thread carries them out, one at a time. The client that sent a slow
command has to wait for its answer, so its commands are executed in order. All
other clients are served meanwhile.

A client that does not read delays only itself: until it reads an answer, its
further commands wait. Events for it are kept up to a limit; beyond that it is
disconnected.
"""

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Self

from pykvm.host.threads import start
from pykvm.machine import Machine
from pykvm.machine.events import Event, may_be_lost
from pykvm.machine.outcome import Outcome
from pykvm.monitor.commands import SLOW, Target, execute
from pykvm.monitor.jobs import Jobs
from pykvm.monitor.listener import MonitorSocket
from pykvm.monitor.protocol import Command, Conversation, QmpError, encode
from pykvm.monitor.qapi import event_message, version

MAX_CLIENTS: Final = 16
"""Further clients wait until a client leaves."""
MAX_UNREAD: Final = 1 << 20
"""The bytes that are kept for a client that does not read; with more it is disconnected."""
LAST_WORDS_SECONDS: Final = 0.5
"""The longest time that the end waits for clients to read their last messages."""
RETRY_SECONDS: Final = 1.0
"""The time after a failed accept during which no client is accepted."""
_CHUNK = 64 << 10

_Answer = tuple["_Client", bytes]


class _Client:
    """One connection: owns its socket. Used by the monitor's thread only."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.conversation = Conversation(version())
        self.todo: deque[Command | bytes] = deque()
        self.busy = False  # the worker has a command of this client
        self.gone = False
        self._unsent = bytearray()
        self.send(self.conversation.greeting)

    @property
    def interest(self) -> int:
        """The selector's events to wait for; input only once all earlier commands are answered."""
        if self._unsent:
            return selectors.EVENT_WRITE
        return 0 if self.busy or self.todo else selectors.EVENT_READ

    @property
    def ready(self) -> bool:
        """True if the next item of ``todo`` may be carried out now."""
        return bool(self.todo) and not (self.busy or self._unsent or self.gone)

    def receive(self) -> None:
        """Read from the socket, and queue the commands."""
        try:
            data = self.socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.gone = True
        self.todo += self.conversation.receive(data)

    def send(self, data: bytes) -> None:
        """Send ``data`` after all earlier data, now or when the socket has room."""
        self._unsent += data
        self.flush()
        if len(self._unsent) > MAX_UNREAD:
            self.gone = True

    def flush(self) -> bool:
        """Send as much as the socket takes; True if nothing is left to send."""
        try:
            while self._unsent and not self.gone:
                del self._unsent[: self.socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.gone = True
        return not self._unsent or self.gone


class Monitor:
    """Serves ``machine`` to the clients of ``listener``. A context manager; owns two threads.

    Leave the context before ``machine`` is closed. Clients get all earlier
    events before they are disconnected.
    """

    def __init__(
        self,
        listener: MonitorSocket,
        machine: Machine,
        snapshots: Path | None = None,
        after_reset: Callable[[], None] | None = lambda: None,
    ) -> None:
        """``snapshots``: where paths of snapshots begin. ``after_reset``: see Jobs."""
        jobs = Jobs(machine, self._post, self._bug, snapshots, after_reset)
        self._target = Target(machine, jobs)
        self._listener = listener.socket
        self._machine = machine
        self._clients: set[_Client] = set()
        self._inbox: SimpleQueue[Event | _Answer | None] = SimpleQueue()
        self._work: SimpleQueue[tuple[_Client, Command] | None] = SimpleQueue()
        self._accept_at = 0.0
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)
        self._worker = threading.Thread(target=self._run_slow, name="monitor worker", daemon=True)

    def __enter__(self) -> Self:
        self._selector = selectors.EpollSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._forget = self._machine.listen(self._hear)
        try:
            start(self._thread, "the monitor")
            start(self._worker, "the monitor")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._work.put(None)
        if self._worker.ident is not None:
            self._worker.join()
        self._target.jobs.close()
        self._forget()
        self._post(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def _hear(self, event: Event) -> None:
        """Queue ``event`` without waiting. So the queue needs its own limit."""
        if not may_be_lost(event, self._inbox.qsize()):
            self._post(event)

    def _post(self, item: Event | _Answer | None) -> None:
        self._inbox.put(item)
        os.eventfd_write(self._wake, 1)

    def _run_slow(self) -> None:
        try:
            while (item := self._work.get()) is not None:
                client, command = item
                answer = self._answer(command)
                # Clients get the STOP or RESUME before the answer to the command.
                self._machine.flush_events()
                self._post((client, answer))
        except BaseException as error:
            self._bug(error)
            raise

    def _bug(self, error: BaseException) -> None:
        self._machine.finish(Outcome.error(f"a bug in the monitor: {error!r}"))

    def _answer(self, command: Command) -> bytes:
        try:
            return command.success(execute(self._target, command))
        except QmpError as error:
            return command.failure(error)

    # -- in the monitor's thread -------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._ending:
                self._turn()
            self._say_last_words()
        except BaseException as error:
            self._bug(error)
            raise
        finally:
            for client in self._clients:
                client.socket.close()

    def _turn(self) -> None:
        accepting = len(self._clients) < MAX_CLIENTS and time.monotonic() >= self._accept_at
        self._watch(self._listener, selectors.EVENT_READ if accepting else 0)
        for key, events in self._selector.select(None if accepting else RETRY_SECONDS):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._wake:
                os.eventfd_read(self._wake)
            else:
                self._attend(key.data, events)
        self._empty_inbox()
        for client in list(self._clients):
            self._go_on(client)
            self._watch(client.socket, 0 if client.gone else client.interest, client)
            if client.gone:
                self._clients.discard(client)
                client.socket.close()

    def _watch(self, watched: socket.socket, events: int, client: "_Client | None" = None) -> None:
        """Have the selector look for ``events``, 0 for none, on ``watched``."""
        key = self._selector.get_map().get(watched)
        if key is None:
            if events:
                self._selector.register(watched, events, client)
        elif not events:
            self._selector.unregister(watched)
        elif key.events != events:
            self._selector.modify(watched, events, client)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:
            # No descriptors are left, and the waiting client would wake the thread again at once.
            self._accept_at = time.monotonic() + RETRY_SECONDS
            return
        self._clients.add(_Client(connection))

    def _attend(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.flush()
        if events & selectors.EVENT_READ:
            client.receive()

    def _empty_inbox(self) -> None:
        while not self._inbox.empty():
            item = self._inbox.get()
            if item is None:
                self._ending = True
            elif isinstance(item, tuple):
                client, answer = item
                client.busy = False
                client.send(answer)
            else:
                self._broadcast(item)

    def _broadcast(self, event: Event) -> None:
        message = event_message(event)
        if message is None:
            return
        data = encode(message)
        for client in self._clients:
            if client.conversation.negotiated:
                client.send(data)

    def _go_on(self, client: _Client) -> None:
        """Carry out the commands of ``client`` until it has to wait for the worker or to read."""
        while client.ready:
            item = client.todo.popleft()
            if isinstance(item, bytes):
                client.send(item)
            elif item.name in SLOW:
                client.busy = True
                self._work.put((client, item))
            else:
                client.send(self._answer(item))

    def _say_last_words(self) -> None:
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while waiting := [client for client in self._clients if not client.flush()]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            with selectors.PollSelector() as room:
                for client in waiting:
                    room.register(client.socket, selectors.EVENT_WRITE)
                room.select(left)
