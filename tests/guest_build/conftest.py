"""The guest's recipe, found in the checkout's guest folder, and its agent as a local process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import Host, running
from checkout import ROOT

GUEST = ROOT / "guest"
sys.path.insert(0, str(GUEST))


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's first process, as a program of this machine."""
    output = tmp_path_factory.mktemp("init") / "init"
    sources = sorted(str(file) for file in (GUEST / "init").glob("*.c"))
    flags = ["-O1", "-Wall", "-Wextra", "-Wno-unused-result", "-Werror"]
    subprocess.run(["gcc", *flags, *sources, "-o", str(output)], check=True)
    return output


@pytest.fixture(params=["line", "mailbox"])
def host(
    agent: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A running agent, after its HELLO, over each of its two ways to speak."""
    mailbox = tmp_path_factory.mktemp("mailbox") / "mailbox" if request.param == "mailbox" else None
    with running([str(agent)], mailbox) as line:
        yield line
