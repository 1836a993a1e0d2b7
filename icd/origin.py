"""On what a run is made: the device, and the commit of this program."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch


def device_name(device: torch.device, processes: int = 1) -> str:
    """What a log calls the hardware; each process has a device of its own."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    return name if processes == 1 else f"{processes} x {name}"


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit that runs: of the checkout, with a + where files differ, or of what pip installed from git.

    "installed" where neither is known.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # else it is installed within another checkout
        changed = git("status", "--porcelain", "--untracked-files=no", ".").strip()
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return _installed()


def _installed() -> str:
    try:
        origin = json.loads(metadata.distribution("icd-book").read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])[:10]
    except (metadata.PackageNotFoundError, LookupError, ValueError):
        return "installed"
