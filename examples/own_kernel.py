"""Run a kernel of your own without an agent, and follow its console::

python examples/own_kernel.py bzImage [initrd]
"""

import sys

import pykvm


def main() -> int:
    kernel, *initrd = sys.argv[1:]
    with pykvm.boot(kernel=kernel, initrd=initrd[0] if initrd else None, timeout=120) as guest:
        version = guest.console.wait_for(r"Linux version (\S+)").group(1)
        print(f"it is Linux {version}")
        outcome = guest.wait()
        print(f"it ended: {outcome.kind.name} {outcome.reason}")
        return outcome.status


if __name__ == "__main__":
    sys.exit(main())
