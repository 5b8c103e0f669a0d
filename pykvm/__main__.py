"""``python -m pykvm``, and the program ``pykvm``."""

import gc
import sys

from pykvm.cli.process import leave_on_signals, open_standard_streams


def run() -> int:
    """Run the command line in a process of its own, and return the exit status."""
    # Imports create no garbage, and the collector would take a tenth of their time.
    gc.disable()
    # Before the imports that take time, so that a signal meanwhile prints no traceback.
    leave_on_signals()
    open_standard_streams()
    from pykvm.cli.main import main

    return main(own_process=True)


if __name__ == "__main__":
    sys.exit(run())
