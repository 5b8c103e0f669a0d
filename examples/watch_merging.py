"""Write the same data to two disks, and compare the operations that they make of the requests.

In the guest, ``dd`` writes 256 KiB at once. Both disks ask for requests of at most 4 KiB, so Linux
sends each of them 64 requests. One disk merges requests that follow each other, the other does not.
The statistics count requests and merges, and the trace has every operation.
"""

from collections import Counter

import pykvm

WRITE = """
for disk in vda vdb; do
    dd if=/dev/zero of=/dev/$disk bs=256k count=1 oflag=direct
done
"""


def main() -> None:
    trace = pykvm.TraceLog("*.submit")
    disks = [
        pykvm.DiskConfig(blank=1 << 20, merge=merge, seg_max=1, size_max=4096)
        for merge in (pykvm.MergePolicy.OFF, pykvm.MergePolicy.SEQUENTIAL)
    ]
    with pykvm.boot(disks=disks, trace=trace) as guest:
        guest.run(WRITE)
        for disk in guest.disks:
            counts = disk.statistics()
            print(f"merge={disk.config.merge.value}:", end=" ")
            print(f"the guest wrote {counts['wr_operations']} requests,", end=" ")
            print(f"{counts['wr_merged']} were merged into others")
            sizes = Counter(
                (event["length"], len(event["requests"]))
                for event in trace
                if event["disk"] == disk.name and event["kind"] == "write"
            )
            for (length, requests), count in sizes.items():
                print(f"    {count} operations of {length} bytes; requests in each: {requests}")


if __name__ == "__main__":
    main()
