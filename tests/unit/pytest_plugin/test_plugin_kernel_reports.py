"""The kernel's own reports in a console's text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.pytest_plugin.kernel_reports import KINDS, KernelReport, kernel_reports

REPORTS = {
    "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)": "panic",
    "BUG: kernel NULL pointer dereference, address: 0000000000000008": "oops",
    "BUG: unable to handle page fault for address: ffffc90000000000": "oops",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI": "oops",
    "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]": "oops",
    "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP": "oops",
    "kernel BUG at fs/ext4/inode.c:2721!": "bug",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:16]": "bug",
    "BUG: scheduling while atomic: swapper/0/0/0x00000002": "bug",
    "BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right+0xa8/0xbc": "kasan",
    "INFO: task kworker/u4:1:17 blocked for more than 120 seconds.": "hung-task",
    "WARNING: CPU: 0 PID: 16 at kernel/softirq.c:376 __local_bh_enable_ip+0x5e/0x70": "warning",
    "WARNING: possible circular locking dependency detected": "warning",
}


@pytest.mark.parametrize(("line", "kind"), REPORTS.items())
def test_each_report_has_its_kind(line: str, kind: str) -> None:
    report = KernelReport(kind, line)
    for beginning in ("", "[   12.345678] ", "<4>", "<0>[    1.5][  T16] "):
        text = f"before\r\n{beginning}{line}\r\nafter\n"
        assert kernel_reports(text) == [report]


def test_every_kind_is_found() -> None:
    assert set(REPORTS.values()) == set(KINDS)


def test_a_report_that_two_texts_have_counts_once_and_the_order_stays() -> None:
    first, second, *_ = REPORTS
    found = kernel_reports(f"{second}\n{first}\n", f"{first}\n")
    assert [report.line for report in found] == [second, first]


@pytest.mark.parametrize(
    "line",
    [
        "the test prints Kernel panic - not syncing",
        "DEBUG: BUG: no report",
        "INFO: task a is fine",
        "sysrq: Trigger a crash",
    ],
)
def test_other_lines_are_no_reports(line: str) -> None:
    assert kernel_reports(line) == []


@given(st.lists(st.one_of(st.sampled_from(list(REPORTS)), st.text(max_size=60))))
def test_each_line_is_judged_alone(lines: list[str]) -> None:
    plain = [line.replace("\r", " ").replace("\n", " ") for line in lines]
    found = [report for line in plain for report in kernel_reports(line)]
    assert kernel_reports("\n".join(plain)) == list(dict.fromkeys(found))
