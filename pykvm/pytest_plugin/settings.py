"""The plugin's options, ini options and marker. docs/howto/test-with-pytest.md has the same table.

Every run of pytest imports this module.
"""

import pytest

TYPE_CHECKING = False  # a type checker takes it for True

if TYPE_CHECKING:
    from typing import Any

TRACE_MODES = ("off", "on", "retain-on-failure")
FAIL_ON = "panic oops bug hung-task kasan"

OPTIONS: "tuple[tuple[str, dict[str, Any]], ...]" = (
    (
        "--pykvm-artefacts",
        {
            "metavar": "DIR",
            "help": "the folder for the files of tests that fail, a folder for each test; "
            "default: below pytest's own folder of temporary files",
        },
    ),
    (
        "--pykvm-trace",
        {
            "choices": TRACE_MODES,
            "default": "retain-on-failure",
            "help": "keep every step of the disks: of no test, of all tests, or of tests that "
            "fail (the default)",
        },
    ),
    (
        "--pykvm-keep",
        {"action": "store_true", "help": "keep the files of tests that pass, too"},
    ),
    (
        "--pykvm-snapshot-on-failure",
        {
            "action": "store_true",
            "help": "save the guest of a test that fails; the report has the command that opens a "
            "shell in it",
        },
    ),
    (
        "--pykvm-crash-states",
        {"metavar": "N", "help": "check up to N states after power cuts (default: 1000)"},
    ),
    (
        "--pykvm-crash-replay",
        {
            "metavar": "DIR,ID",
            "help": "instead of recording and exploring, check the state ID of the recording DIR, "
            "as a report names them",
        },
    ),
)

INI: "tuple[tuple[str, Any, str, str], ...]" = (
    (
        "pykvm_fail_on",
        "args",
        FAIL_ON,
        "the kernel's reports that fail a test which otherwise passes: any of panic, oops, bug, "
        "warning, hung-task and kasan",
    ),
    (
        "pykvm_missing_kvm",
        "string",
        "skip",
        "the result of tests with guests on a host without KVM: skip or fail",
    ),
    (
        "pykvm_memory",
        "string",
        "",
        "the memory of all guests that run at once, in all processes, such as 8G; default: half "
        "of the host's memory",
    ),
)

MARKER = (
    "pykvm(**keywords): the guest of the test: keywords of pykvm.boot, such as memory='128M', and "
    "disk, prepare and fail_on (docs/howto/test-with-pytest.md)"
)


def add_options(parser: pytest.Parser) -> None:
    """Declare them."""
    group = parser.getgroup("pykvm", "guests and disks of pykvm")
    for name, keywords in OPTIONS:
        group.addoption(name, **keywords)
    for name, kind, default, help_text in INI:
        parser.addini(name, help_text, kind, default)
