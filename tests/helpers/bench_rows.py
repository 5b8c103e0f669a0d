"""Made-up measurements."""

from pykvm.bench.disk.report.compare import Row, rows
from pykvm.bench.disk.sample import Run, Sample
from pykvm.bench.disk.workload import Shapes, parse_workloads

WORKLOADS = parse_workloads(["randread", "seqwrite-128k"], Shapes([1, 8]))


def sample(iops: float) -> Sample:
    """A sample with this many requests per second."""
    latency = 1e6 / iops
    return Sample(iops, latency, 2 * latency, 3 * latency, 4 * latency, cpu=5.0, cpu_whole=9.0)


def run(*iops: float) -> Run:
    """A run with a sample for each workload; 0 means no sample."""
    return Run(tuple(sample(x) if x else None for x in iops), start=0.2, memory=20 << 20)


def example() -> list[Row]:
    """Rows in which QEMU sometimes wins, with different configurations, and fio has two rows."""
    ours = [run(1000, 2000, 300, 400), run(1100, 2200, 330, 440), run(900, 2600, 360, 480)]
    qemu = {
        "aio=threads": [run(500, 1000, 600, 100)] * 3,
        "aio=io_uring": [run(400, 1600, 500, 80), run(440, 2200, 500, 80), run(360, 1300, 500, 80)],
    }
    fio = {"ioengine=psync": [run(9000, 0, 5000, 0)] * 3}
    return rows(WORKLOADS, ours, {"qemu": qemu, "fio": fio})
