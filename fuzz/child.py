"""One target under libFuzzer: ``python -m fuzz.child TARGET [libFuzzer's arguments]``."""

import sys

import atheris

# Everything that is imported here can be followed; pykvm.errors must not come before.
with atheris.instrument_imports(include=["pykvm", "fuzz"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's arguments say that it is enough, or something is found."""
    name, *arguments = sys.argv[1:]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
