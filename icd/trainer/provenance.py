"""Where a result comes from: device, commit, and digests of weights."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from torch import nn


def device_name(device: torch.device, processes: int = 1) -> str:
    """Return the name of the hardware for a log; each process has a device of its own."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    return name if processes == 1 else f"{processes} x {name}"


@lru_cache(maxsize=1)
def commit() -> str:
    """Return the commit of this package: of its checkout, or of what pip installed from git.

    A checkout with changed files has a + at the end. "installed" if neither is known.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    try:
        # Fails if the package is installed inside another project's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no", ":/icd").strip()
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return _installed_commit()


def _installed_commit() -> str:
    try:
        origin = json.loads(metadata.distribution("icd-book").read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])[:10]
    except (metadata.PackageNotFoundError, LookupError, ValueError):
        return "installed"


def describe(network: nn.Module) -> str:
    """Return a network's class and its number of weights."""
    return f"{type(network).__name__}, {sum(p.numel() for p in network.parameters())} weights"


def digest(network: nn.Module) -> str:
    """Return a digest of a network's weights."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]
