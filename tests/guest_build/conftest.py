"""The guest's recipe is no part of the package: it is found in the checkout's guest folder."""

import sys

from checkout import ROOT

GUEST = ROOT / "guest"
sys.path.insert(0, str(GUEST))
