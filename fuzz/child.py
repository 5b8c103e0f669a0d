"""One target under libFuzzer: ``python -m fuzz.child TARGET [libFuzzer's arguments]``."""

import sys

import atheris

# The fuzzer can follow all modules that are imported here, so none of pykvm may come before.
with atheris.instrument_imports(include=["pykvm", "fuzz"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until the time of libFuzzer's arguments is over, or it finds something."""
    name, *arguments = sys.argv[1:]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
