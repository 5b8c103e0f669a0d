"""Cut a guest's power while it writes files, and see that every file that it had synced is there.

The disk is an image file. The guest tells the number of each file after the sync. The end of the
first ``with`` block cuts the power, and the second guest mounts what is left on the disk.
"""

import tempfile
from pathlib import Path

import pykvm

WRITE = """
mke2fs -q -t ext4 -F /dev/vda && mount /dev/vda /mnt || exit
while i=$((i + 1)); do
    echo $i > /mnt/$i
    sync
    echo $i
done
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "disk.img")
        image.write_bytes(bytes(16 << 20))
        with pykvm.boot(disks=[image]) as guest, guest.popen(WRITE) as writer:
            synced = [int(writer.stdout.readline()) for _ in range(3)]
        with pykvm.boot(disks=[image]) as guest:
            guest.run("mount /dev/vda /mnt")
            found = [int(guest.run(["cat", f"/mnt/{number}"]).text) for number in synced]
    print(f"synced before the power cut: {synced}")
    print(f"there after it:              {found}")


if __name__ == "__main__":
    main()
