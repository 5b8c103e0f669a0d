"""Hatch's hook: a wheel contains the compiled hot path, if there is a compiler."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build import ROOT, build, missing_tools


class SpeedHook(BuildHookInterface[Any]):
    """Adds the extension modules to wheels. An editable install uses the checkout's form."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this Python and platform."""
        if self.target_name != "wheel" or version == "editable":
            return
        if missing_tools():
            self.app.display_warning("no C compiler: the hot path of this wheel is interpreted")
            return
        for path in build():
            build_data["force_include"][str(path)] = str(path.relative_to(ROOT))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
