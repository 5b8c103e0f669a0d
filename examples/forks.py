"""Prepare a guest once, and run each case in a fork of it: the cases cannot disturb each other."""

import time

import pykvm

PREPARE = "mke2fs -q -t ext4 -F /dev/vda && mount /dev/vda /mnt && echo 1 > /mnt/file"
CASES = {
    "append": "echo 2 >> /mnt/file",
    "replace": "echo 3 > /mnt/new && mv /mnt/new /mnt/file",
    "remove": "rm /mnt/file && touch /mnt/file",
    "panic": "echo c > /proc/sysrq-trigger",
}


def main() -> None:
    with pykvm.boot() as guest:
        guest.run(PREPARE)
        snapshot = guest.snapshot()
        with snapshot.fork(len(CASES)) as forks:
            for fork, (name, command) in zip(forks, CASES.items(), strict=True):
                try:
                    fork.run(command)
                    print(f"{name}: {fork.run('cat /mnt/file').text.split()}")
                except pykvm.GuestDied as death:
                    print(f"{name}: {death.outcome.kind.name}, {death.outcome.reason}")

        guest.run("rm -r /mnt/*")
        began = time.monotonic()
        guest.reset()
        print(f"reset: {guest.run('cat /mnt/file').text.split()}")
        print(f"it took {(time.monotonic() - began) * 1000:.0f} ms, with the command after it")


if __name__ == "__main__":
    main()
