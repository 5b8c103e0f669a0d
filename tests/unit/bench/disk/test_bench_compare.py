"""From runs to medians, ratios, tables and drawings."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from bench_rows import WORKLOADS, example, run, sample
from hypothesis import example as with_example
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bench.columns import align, number, whole
from pykvm.bench.disk.report.chart import chart_of
from pykvm.bench.disk.report.compare import rows
from pykvm.bench.disk.report.table import cost_of, tables
from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.tools.process import Ram
from pykvm.bench.disk.workload import EXITS, Shapes, Workload, parse_workloads
from pykvm.svg.axes import linear_axis, log_axis, short

SVG = "{http://www.w3.org/2000/svg}"
values = st.lists(st.floats(1e-2, 1e8), min_size=1, max_size=30)


def test_medians_and_ends():
    first = example()[0].ours
    assert (first.median.iops, first.least, first.most) == (1000, 900, 1100)
    assert first.median.p50 == pytest.approx(1000)
    assert first.median.notifications is None


def test_the_best_configuration_counts_for_each_workload():
    found = [row.others[0] for row in example()]
    assert [versus.figures.label for versus in found] == [
        "aio=threads",
        "aio=io_uring",
        "aio=threads",
        "aio=threads",
    ]
    assert [versus.figures.median.iops for versus in found] == [500, 1600, 600, 100]


def test_a_ratio_compares_medians_and_its_range_compares_pairs():
    ratio = example()[1].others[0].ratio
    assert ratio.median == 2200 / 1600
    assert (ratio.least, ratio.most) == (1.0, 2.0)
    assert ratio.best == 2600 / 2200


def test_a_tool_without_figures_is_left_out():
    assert [[versus.tool for versus in row.others] for row in example()] == [
        ["qemu", "fio"],
        ["qemu"],
        ["qemu", "fio"],
        ["qemu"],
    ]


def test_alone():
    found = rows(WORKLOADS, [run(1, 2, 3, 4)], {})
    assert [row.ours.median.iops for row in found] == [1, 2, 3, 4]
    assert all(row.others == () for row in found)


def test_tables_show_every_row():
    own, qemu, fio = tables(example()).split("\n\n")
    assert len(own.splitlines()) == len(qemu.splitlines()) == 5
    assert len(fio.splitlines()) == 3
    assert " ".join(own.splitlines()[1].split()) == (
        "randread 4 KiB 1 1 000 900 1 100 4.10 1 000 2 000 3 000 4 000 5.00 - -"
    )
    assert "1.38  1.00-2.00     1.18" in qemu
    assert qemu.splitlines()[2].endswith("  aio=io_uring")


def test_exits_have_a_table_of_their_own():
    exits = Workload(EXITS, 4096, 0)
    (busy,) = parse_workloads(["randread"], Shapes([8]))
    found = [
        replace(
            sample(10), exits=10.0, exit_p50=1.0, exit_p99=2.0, exit_p999=3.0, exit_longest=4.0
        ),
        replace(sample(20), exits=5.0, exit_p50=5.0, exit_p99=6.0, exit_p999=7.0, exit_longest=8.0),
    ]
    theirs = {"qemu": {"aio=threads": [Run((sample(1), found[0]))]}}
    *_, table = tables(rows([exits, busy], [Run(tuple(found))], theirs)).split("\n\n")
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["exits", "-", "pykvm", "10", "1.00", "2.00", "3.00", "4.00"],
        ["randread", "4", "KiB", "8", "pykvm", "5", "5.00", "6.00", "7.00", "8.00"],
        ["randread", "4", "KiB", "8", "qemu", "10", "1.00", "2.00", "3.00", "4.00"],
    ]


def test_columns_line_up():
    text = align(["name", "n", " note"], [["a", "1", " x"], ["longer", "1000", " longer still"]])
    assert text.splitlines() == [
        "name       n   note",
        "a          1   x",
        "longer  1000   longer still",
    ]


def test_numbers_are_short():
    assert [number(x) for x in (None, 1.234, 12.34, 1234.5)] == ["-", "1.23", "12.3", "1 234"]
    assert whole(1234567.8) == "1 234 568"
    assert cost_of("x", 0.2, 20 << 20) == (
        "x: first guest instructions after 0.20 s, 20.0 MiB beyond guest RAM"
    )
    assert cost_of("x", None, None) == ""
    assert cost_of("x", None, None, note="as it is") == "x: as it is"
    assert cost_of("x", None, 0, Ram("memfd", 3 << 20, 2 << 20)) == (
        "x: 0.0 MiB beyond guest RAM, memfd RAM, 2.0 of 3.0 MiB large pages"
    )


def test_the_drawing_has_a_line_for_each_tool_and_diagram():
    root = ElementTree.fromstring(chart_of(example()))
    lines = [line.get("points", "") for line in root.iter(f"{SVG}polyline")]
    # Two workloads, two diagrams each, three tools.
    assert len(lines) == 12
    assert [len(line.split()) for line in lines[:3]] == [2, 2, 1]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    for expected in ("pykvm", "qemu", "fio", "randread 4 KiB", "seqwrite 128 KiB", "8"):
        assert expected in texts


def test_everything_drawn_is_on_the_sheet():
    root = ElementTree.fromstring(chart_of(example()))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 2 * sum(1 + len(row.others) for row in example())
    for circle in circles:
        assert 0 < float(circle.get("cx", 0)) < width
        assert 0 < float(circle.get("cy", 0)) < height


@given(values)
@with_example([0.010000000000000002])
def test_a_linear_axis_holds_its_values(found: list[float]):
    axis = linear_axis(found)
    assert all(0 <= axis.place(value) <= 1 for value in found)
    assert axis.ticks[0] == 0
    assert 2 <= len(axis.ticks) <= 6
    assert axis.place(axis.ticks[-1]) == pytest.approx(1)
    assert axis.place(max(found)) > 0.5


@given(values)
def test_a_logarithmic_axis_holds_its_values(found: list[float]):
    axis = log_axis(found)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in found)
    assert all(-1e-9 <= axis.place(tick) <= 1 + 1e-9 for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 6


def test_labels_are_short():
    assert [short(x) for x in (0, 0.5, 250, 20_000, 1_500_000)] == [
        "0",
        "0.5",
        "250",
        "20k",
        "1.5M",
    ]
