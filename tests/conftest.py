"""What several test files share: where things are, and which chapters there are."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from helpers import ROOT

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("icd", deadline=None)
hypothesis.settings.load_profile("icd")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
