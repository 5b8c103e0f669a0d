"""Write the same data to two disks, and compare the operations that they make of the requests.

In the guest, ``dd`` writes 256 KiB at once. Both disks ask for requests of at most 4 KiB, so Linux
sends each of them 64 requests. One disk merges requests that follow each other, the other does not.
The statistics count requests and merges, and the trace has every operation.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pykvm

WRITE = """
for disk in vda vdb; do
    dd if=/dev/zero of=/dev/$disk bs=256k count=1 oflag=direct 2>/dev/null
done
"""
POLICIES = (pykvm.MergePolicy.OFF, pykvm.MergePolicy.SEQUENTIAL)


def disk(folder: Path, merge: pykvm.MergePolicy) -> pykvm.DiskConfig:
    image = folder / f"{merge.value}.img"
    image.write_bytes(bytes(1 << 20))
    return pykvm.DiskConfig(image, merge=merge, seg_max=1, size_max=4096)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace.jsonl"
        config = pykvm.MachineConfig(
            guest="guest",
            agent=True,
            disks=[disk(folder, merge) for merge in POLICIES],
            trace=pykvm.TraceOptions(trace, events="*.submit"),
        )
        with pykvm.Machine(config) as machine:
            pykvm.run_command(machine, WRITE, timeout=120)
            statistics = machine.statistics()["disks"]
        events = [json.loads(line) for line in trace.read_bytes().splitlines()]

    for merge, counts in zip(POLICIES, statistics, strict=True):
        print(f"merge={merge.value}: the guest wrote {counts['wr_operations']} requests,", end=" ")
        print(f"{counts['wr_merged']} were merged into others")
        sizes = Counter(
            (event["length"], len(event["requests"]))
            for event in events
            if event.get("disk") == counts["device"] and event.get("kind") == "write"
        )
        for (length, requests), count in sizes.items():
            print(f"    {count} operations of {length} bytes; requests in each: {requests}")


if __name__ == "__main__":
    main()
