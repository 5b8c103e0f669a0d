"""``python -m pykvm``, and the program ``pykvm``."""

import gc
import sys

from pykvm.cli.process import leave_on_signals, open_standard_streams


def run() -> int:
    """Be the process: the command line from the first import to the exit status."""
    # Nothing that imports make is garbage, and to look for some takes a tenth of their time.
    gc.disable()
    # Before the imports that take time: a signal shall find no traceback to print.
    leave_on_signals()
    open_standard_streams()
    from pykvm.cli.main import main

    return main(own_process=True)


if __name__ == "__main__":
    sys.exit(run())
