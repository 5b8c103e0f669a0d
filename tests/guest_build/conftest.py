"""The guest's recipe is no part of the package: it is found in the checkout's guest folder."""

import sys
from pathlib import Path

GUEST = Path(__file__).resolve().parent.parent.parent / "guest"
sys.path.insert(0, str(GUEST))
