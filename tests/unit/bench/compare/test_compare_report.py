"""From samples to ratios, tables and drawings; and the configurations of ``--vary``."""

from xml.etree import ElementTree

import pytest

from pykvm.bench.compare.report import Sample, best, chart_of, ratio, text_of
from pykvm.cli.bench.compare.options import variants
from pykvm.devices.virtio_blk.observe.stats import CLASSIC
from pykvm.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"


def sample(seconds: float, merged: int = 0, write_us: int = 100) -> Sample:
    """20 writes of ``write_us`` µs on average, of which ``merged`` were joined; no reads."""
    counters = dict.fromkeys(CLASSIC, 0)
    counters |= {"wr_operations": 20, "wr_merged": merged}
    counters["wr_total_time_ns"] = 20 * 1000 * write_us
    return Sample(seconds, counters)


RUNS = {
    "merge=off": [sample(1.0), sample(2.0), sample(4.0)],
    "merge=sorted": [sample(0.5, 15, 50), sample(4.0, 15, 50), sample(2.0, 15, 50)],
}


def test_a_sample():
    one = sample(1.0, 15)
    assert one.operations == 5
    assert one.mean("wr") == 100
    assert one.mean("rd") is None


def test_ratios_are_of_the_same_round():
    assert ratio(RUNS, "merge=sorted", lambda one: one.seconds) == "0.50 (0.50-2.00)"
    assert ratio(RUNS, "merge=sorted", lambda one: one.mean("wr")) == "0.50 (0.50-0.50)"
    assert ratio(RUNS, "merge=sorted", lambda one: one.mean("rd")) == "-"
    assert best(RUNS, "merge=sorted") == "0.50"


def test_the_text():
    table, ratios, lines, end = text_of(RUNS, "install", "A note.").split("\n\n")
    assert table.splitlines()[0].startswith("install ")
    off, merged = (line.split() for line in table.splitlines()[1:])
    assert off == ["merge=off", "2.000", "0", "0", "20", "0", "0", "20", "-", "100", "-"]
    assert merged == ["merge=sorted", "2.000", "0", "0", "20", "15", "0", "5", "-", "50.0", "-"]
    assert ratios.splitlines()[0].startswith("ratio to merge=off")
    assert lines.splitlines()[1].startswith("merge=sorted: rd_bytes=0 wr_bytes=0 rd_operations=0")
    assert lines.splitlines()[1].endswith("wr_merged=15")
    assert end == "A note.\n"


def test_one_configuration_has_no_ratios():
    text = text_of({"merge=off": RUNS["merge=off"]}, "boot", "")
    assert "ratio to" not in text


def test_the_drawing_has_a_panel_for_each_known_figure():
    drawing = ElementTree.fromstring(chart_of(RUNS, "install"))
    texts = [text.text for text in drawing.iter(f"{SVG}text")]
    assert "operations on the host" in texts
    assert "mean time of a write, µs" in texts
    assert "mean time of a read, µs" not in texts
    assert texts.count("merge=sorted") == 3


def test_the_policies_are_compared_by_default():
    assert variants([]) == [
        "merge=off",
        "merge=sorted-batch",
        "merge=sequential",
        "merge=sorted",
    ]


def test_several_keys_are_combined():
    assert variants(["merge=off,sorted", "engine=sync,threads"]) == [
        "merge=off,engine=sync",
        "merge=off,engine=threads",
        "merge=sorted,engine=sync",
        "merge=sorted,engine=threads",
    ]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["merg=off"], "did you mean 'merge'"),
        (["merge=sequental,off"], "merge cannot be 'sequental'"),
        (["merge"], "--vary cannot be 'merge'"),
        (["merge=off,off"], "twice"),
        (["merge=off", "merge=sorted"], "twice"),
        (["queue-size=4,8,16,32,64", "merge=off,sorted", "engine=sync,threads"], "at most 16"),
    ],
)
def test_what_cannot_be_compared(texts: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        variants(texts)
