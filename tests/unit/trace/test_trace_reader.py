"""Reading traces, and files that are not traces."""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import UsageError
from pykvm.trace.events import EVENTS, FRAME
from pykvm.trace.plot import plot
from pykvm.trace.reader import LINE_MAX, Reader
from pykvm.trace.summary import NOTABLE_MAX, percentiles, report, summarize

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'x\x00\x1b[2J\u202e<&">\udcff\n' + "y" * 500


def line(name: str, ns: int = 0, disk: str = "virtio0", **fields: object) -> bytes:
    whole = name if name.startswith("trace.") else f"virtio_blk.{name}"
    return (
        json.dumps({"ns": ns, "event": whole, "disk": disk, "queue": 0, **fields}).encode() + b"\n"
    )


def executed(ns: int, kind: str, sector: int, *requests: int, errno: int = 0) -> list[bytes]:
    """An operation, submitted 5 ns before ``ns``, and its requests of a sector each."""
    whole = {"kind": kind, "sector": sector, "length": 512 * len(requests), "requests": requests}
    merge = [line("merge", ns - 9, **whole)] if len(requests) > 1 else []
    taken = [line("request", ns - 10, request=number) for number in requests]
    one = {"kind": kind, "length": 512, "errno": errno, "took_ns": 10}
    return [
        *taken,
        *merge,
        line("submit", ns - 5, **whole),
        line("complete", ns, **whole, errno=errno, took_ns=5),
        *(line("done", ns, request=number, **one) for number in requests),
    ]


def example() -> list[bytes]:
    return [
        line("trace.begin", version=1, disk=""),
        line("trace.disk", path="disk.img", sectors=4096),
        *executed(1000, "read", 0, 0, 1, 2),
        *executed(2000, "read", 64, 3),
        *executed(3000, "write", 4000, 4, 5),
        *executed(4000, "flush", 0, 6),
        *executed(5000, "write", 9, 7, errno=5),
        line("error", 5000, request=7, kind="write", error="EIO", action="report"),
        line("refuse", 6000, head=3, kind="type 9", status="unsupp"),
        line("trace.end", 7000, disk=""),
    ]


def summary_of(lines: list[bytes]) -> str:
    return report(summarize(Reader(lines)))


# -- summary -----------------------------------------------------------------------


def test_a_summary_counts_requests_and_operations() -> None:
    summary = summarize(Reader(example()))
    disk = summary.disks["virtio0"]
    counts = {
        name: (len(kind.took_ns), kind.bytes, kind.merged, kind.failed)
        for name, kind in disk.kinds.items()
    }
    assert counts == {
        "read": (4, 4 * 512, 2, 0),
        "write": (3, 2 * 512, 1, 1),
        "flush": (1, 512, 0, 0),
    }
    assert (disk.operations, disk.merged, disk.most, disk.refused) == (5, 2, 3, 1)
    assert disk.errors == {"write EIO report": 1}
    assert [event.name for event in summary.notable] == ["virtio_blk.error", "virtio_blk.refuse"]
    assert summary.complete


def test_a_report_shows_the_summary() -> None:
    text = summary_of(example())
    assert "virtio0: disk.img, 2 MiB" in text
    assert "5 operations, 2 of them for several requests (up to 3)" in text
    assert "write EIO report: 1" in text
    assert "missing" not in text
    assert "never" not in text


def test_a_report_counts_unanswered_requests() -> None:
    lines = [*example()[:-1], line("request", 6500, request=8)]
    assert "1 request never answered" in summary_of(lines)
    assert "the end is missing" in summary_of(lines)


def test_only_the_first_notable_events_are_shown() -> None:
    lines = [line("refuse", i, kind="read", status="ioerr") for i in range(NOTABLE_MAX + 7)]
    assert "and 7 more" in summary_of(lines)
    assert f"{NOTABLE_MAX + 7} requests refused" in summary_of(lines)


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 100))
def test_percentiles(values: list[int], percent: int) -> None:
    (found,) = percentiles(values, [percent])
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < max(1, len(values) * percent / 100)


# -- plot --------------------------------------------------------------------------


def test_a_plot_has_a_path_for_each_kind_of_mark() -> None:
    lines = [
        *example(),
        line("stop", 6000),
        *executed(9000, "discard", 5, 9),
        *executed(9100, "write-zeroes", 5, 10),
        *executed(9200, "other", 5, 11, 12),
    ]
    drawing = ElementTree.fromstring(plot(Reader(lines)))
    words = {text.text for text in drawing.iter(f"{SVG}text")}
    assert {
        "read (1)",
        "read, merged (1)",
        "write, merged (1)",
        "flush (1)",
        "failed (1)",
        "discard (1)",
        "write zeroes (1)",
        "other (1)",
        "stop, resume (1)",
        "virtio0 disk.img",
        "time, µs",
    } <= words


def test_marks_are_where_and_when_they_happened() -> None:
    """Two reads, at the lower left and the upper right corner."""
    first, last = executed(10, "read", 0, 0), executed(100_010, "read", 1000, 1)
    drawing = plot(Reader([*first, *last]))
    *_, path = ElementTree.fromstring(drawing).iter(f"{SVG}path")
    assert path.get("d") == "M80 390h2M1080 70h2"


def test_marks_that_look_the_same_are_drawn_once() -> None:
    numbers = count()
    lines = [part for i in range(2000) for part in executed(20 + i, "read", 7, next(numbers))]
    lines += executed(10**9, "read", 7, next(numbers))
    assert len(plot(Reader(lines))) < 5000


def test_each_disk_has_a_separate_drawing() -> None:
    lines = example() + [one.replace(b"virtio0", b"virtio1") for one in example()]
    drawing = ElementTree.fromstring(plot(Reader(lines)))
    assert drawing.get("height") == "880"


@pytest.mark.parametrize("lines", [example()[:3], [line("stop", 5)]])
def test_a_trace_without_operations_cannot_be_drawn(lines: list[bytes]) -> None:
    with pytest.raises(UsageError, match="no operations"):
        plot(Reader(lines))


# -- bad input -----------------------------------------------------------------------


def test_the_last_line_may_be_cut_anywhere() -> None:
    whole = b"".join(example()[:-1])
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        reader = Reader(whole[:end].splitlines(keepends=True))
        summarize(reader)
        assert reader.cut == (end > start)
    assert "cut short" in summary_of(whole[:-5].splitlines(keepends=True))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no json\n", "line 2 .* not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"7" * 10_000 + b"\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b"{}\n", "'ns'"),
        (line("stop", -1), "'ns'"),
        (line("stop", True), "'ns'"),
        (line("stop", 1 << 63), "'ns'"),
        (line("stop").replace(b': 0, "event"', b': NaN, "event"'), "'ns'"),
        (b'{"ns":1}\n', "'event'"),
        (line("stop", disk=7), "'disk'"),  # type: ignore[arg-type]
        (line("stop").replace(b'"queue": 0', b'"queue": "0"'), "'queue'"),
        (line("done", kind=[], errno=0, took_ns=1), "'kind'"),
        (line("complete", kind="read", sector=1.5), "'sector'|'requests'"),
        (line("submit", requests=3), "'requests'"),
        (b"x" * (LINE_MAX + 1), "longer"),
        (line("trace.begin", version=2), "newer"),
    ],
)
def test_mistakes_name_the_line(bad: bytes, message: str) -> None:
    uses: list[Callable[[Reader], object]] = [summarize, plot]
    failures = []
    for use in uses:
        try:
            use(Reader([line("trace.begin", version=1, disk=""), bad, *example()]))
        except UsageError as error:
            failures.append(error)
    assert failures
    with pytest.raises(UsageError, match=message):
        raise failures[0]


def test_chromes_format_is_recognized() -> None:
    with pytest.raises(UsageError, match="JSON Lines"):
        summarize(Reader([b"[\n", b"{}\n"]))


@given(st.lists(st.binary(max_size=60).map(lambda data: data + b"\n")))
def test_any_bytes_are_a_trace_or_an_error(lines: list[bytes]) -> None:
    for use in (summarize, plot):
        try:
            use(Reader(lines))
        except UsageError:
            continue


ANYTHING = st.one_of(st.integers(-1, 1 << 65), st.text(), st.floats(), st.lists(st.integers(0, 9)))
NAMES = ("kind", "sector", "length", "requests", "errno", "took_ns", "path", "sectors", "error")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*EVENTS, *FRAME]),
            st.integers(0, 1 << 63),
            st.dictionaries(st.sampled_from(NAMES), ANYTHING),
        ),
        max_size=8,
    )
)
def test_any_fields_are_shown_or_an_error(
    events: list[tuple[str, int, dict[str, object]]],
) -> None:
    lines = [
        json.dumps({"ns": ns, "event": name, "disk": "virtio0", "version": 1, **fields}).encode()
        + b"\n"
        for name, ns, fields in events
    ]
    with suppress(UsageError):
        summary_of(lines)
        ElementTree.fromstring(plot(Reader(lines)))


def test_hostile_text_reaches_neither_terminal_nor_xml() -> None:
    lines = [
        line("trace.disk", path=HOSTILE, sectors=8, disk=HOSTILE),
        *[one.replace(b"virtio0", json.dumps(HOSTILE).encode()[1:-1]) for one in example()],
        line("error", kind=HOSTILE, error="EIO", action="stop", **{HOSTILE: HOSTILE}),
        *executed(99, HOSTILE, 3, 99),
    ]
    text = summary_of(lines)
    assert all(one.isprintable() for one in text.splitlines())
    drawing = plot(Reader(lines))
    assert all(one.isprintable() for one in drawing.splitlines())
    ElementTree.fromstring(drawing)


@pytest.mark.parametrize("text", [b"", b"\x7fELF\x02\x01", b"# pykvm\n", b"\xff\n", b"{}\n"])
def test_a_file_that_is_not_a_trace_is_an_error(text: bytes) -> None:
    with pytest.raises(UsageError, match="this is not a trace: "):
        list(Reader(text.splitlines(keepends=True)))
