"""Let a sector of a guest's disk go bad while the guest runs, and look at it from both sides.

The guest reads three neighbouring pages of 4 KiB. The middle one holds the bad sector.
"""

import pykvm

BAD_SECTOR = 2187  # of 512 bytes: it lies in page 273
READ_PAGES = """
for page in 272 273 274; do
    dd if=/dev/vda of=/dev/null bs=4k skip=$page count=1 iflag=direct 2>/dev/null &&
        echo "page $page: read" || echo "page $page: error"
done
"""


def main() -> None:
    with pykvm.boot(disks=["2M"]) as guest:
        (disk,) = guest.disks
        print(guest.run(READ_PAGES).text, end="\n\n")

        fault = pykvm.Fault(operation="read", sectors=BAD_SECTOR, errno="EIO")
        disk.faults.add(fault)
        print(guest.run(READ_PAGES).text, end="\n\n")

        (error,) = (line for line in guest.dmesg().splitlines() if "I/O error" in line)
        print(f"the guest's kernel: {error.partition(' op ')[0]}")
        print(f"the disk: {disk.stats.failed_rd_operations} failed read")


if __name__ == "__main__":
    main()
