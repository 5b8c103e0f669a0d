"""Boot the bundled guest with a disk that has a bad sector, and look at it from both sides.

The guest reads three neighbouring pages of 4 KiB. The middle one holds the bad sector.
"""

import tempfile
from pathlib import Path

import pykvm

BAD_SECTOR = 2187  # of 512 bytes: it lies in page 273
READ_PAGES = """
for page in 272 273 274; do
    dd if=/dev/vda of=/dev/null bs=4k skip=$page count=1 iflag=direct 2>/dev/null &&
        echo "page $page: read" || echo "page $page: error"
done
dmesg | grep -o 'I/O error, dev vda, sector [0-9]*'
"""


def on_event(event: pykvm.Event) -> None:
    """Called in a thread of the machine, for each event."""
    if isinstance(event, pykvm.BlockIoError):
        error = event.error
        print(f"host:  {event.device}: {error.operation} of {error.length} bytes", end=" ")
        print(f"at sector {error.sector} failed with errno {error.errno}")


def main() -> None:
    plan = pykvm.FaultPlan([pykvm.Fault(operation="read", sectors=BAD_SECTOR, errno="EIO")])
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "disk.img")
        image.write_bytes(bytes(2 << 20))
        config = pykvm.MachineConfig(
            guest="guest", agent=True, disks=[pykvm.DiskConfig(image, faults=plan)]
        )
        with pykvm.Machine(config) as machine:
            machine.listen(on_event)
            result = pykvm.run_command(machine, READ_PAGES, timeout=120)
            (disk,) = machine.statistics()["disks"]
    for line in result.stdout.decode().splitlines():
        print(f"guest: {line}")
    print(f"failed reads: {disk['failed_rd_operations']}, the rule struck: {plan.rules[0].strikes}")


if __name__ == "__main__":
    main()
