"""Boot the bundled guest, run a command in it, and print the command's output.

The exit status is the command's::

    python examples/run_command.py 'uname -a'
"""

import sys

import pykvm


def main() -> int:
    command = " ".join(sys.argv[1:]) or "uname -a"
    with pykvm.boot() as guest:
        result = guest.run(command, check=False)
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    return result.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pykvm.PykvmError as error:  # such as a host without /dev/kvm
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
