"""Run one command: parse its options, run it, and print errors as one line."""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli, capture_parser

from icd.cli import commands
from icd.datasets import DataSet
from icd.errors import DataError, ModelError, NonFiniteLoss, RunError
from icd.experiments.published import published_run
from icd.experiments.run import read_settings
from icd.files import write_atomically
from icd.trainer.checkpoint import flatten
from icd.trainer.distributed import is_main_process
from icd.trainer.recipe import EXECUTION_FIELDS, Recipe

EXPECTED = (DataError, ModelError, RunError, NonFiniteLoss, ValueError, OSError)


def execute(name: str, words: list[str]) -> int:
    """Run the command `name` with the options `words`; return the exit status."""
    run: commands.Run | None = None
    try:
        name, options = parse(name, words)
        # Of several processes the first one prints; each prints its own errors.
        with nullcontext() if is_main_process() else redirect_stdout(io.StringIO()):
            run = getattr(commands, name)(**options)
            if run is not None:
                settings = {
                    k: asdict(v) if isinstance(v, DataSet | Recipe) else v for k, v in options.items()
                }
                settings = json.loads(json.dumps(settings, default=str))
                train(run, settings)
    except KeyboardInterrupt:
        if is_main_process():
            print(f"\nstopped{_how_to_resume(run)}", file=sys.stderr)
        return 130
    except EXPECTED as error:
        # In one write, in case several processes print at once.
        sys.stderr.write(f"icd {name}: {_one_line(error)}\n")
        return 1
    return 0


def parse(name: str, words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command to run and its options. Ends the process with status 2 if they are wrong.

    `reproduce NAME ...` is `distil` or `teach` with the settings of the recipe; options override them.
    """
    program = f"icd {name}"
    if name == "reproduce":
        parser = capture_parser(auto_cli, commands.reproduce, prog=program)
        recipe, *words = words or [""]
        if recipe.startswith("-") or not recipe:
            parser.parse_args([recipe] if recipe in ("-h", "--help") else [])
        try:
            run = published_run(recipe)
        except ValueError as error:
            parser.error(str(error))
        name, program = "distil" if run.teacher else "teach", f"{program} {recipe}"
        words = ["--config", json.dumps(run.settings()), *words]
    parser = capture_parser(auto_cli, getattr(commands, name), prog=program, allow_abbrev=False)
    chosen = parser.parse_args(words)
    try:
        options = parser.instantiate(chosen).as_dict()
    except TypeError as error:  # a config such as `recipe: 3`
        raise RunError("data and recipe must be named settings: see the file given to --config") from error
    return name, {option: value for option, value in options.items() if option != "config"}


def train(run: commands.Run, settings: dict[str, Any]) -> None:
    """Check a run, save its settings as `config.yaml`, and train. A refused run writes nothing."""
    folder = Path(run.folder)
    settings = _same_as_before(folder, settings)
    run.check()
    # `--config` reads the file again.
    write_atomically(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    commands.report(run)


def _same_as_before(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Raise a RunError if `folder` has a run with different settings.

    Returns the settings, with precision, sync_batch_norm and compile as that run began.
    """
    path = folder / "config.yaml"
    one, several = (folder / "checkpoint.pt").exists(), (folder / "results.csv").exists()
    if not path.exists() or not (one or several):
        return settings
    there, here = flatten(read_settings(path, advice="repair or delete it")), flatten(settings)
    # A folder may be renamed or moved, and a comparison may grow and resume on another device.
    free = {"folder", "methods", "seeds", "recipe.precision", "checkpoint_seconds", "checkpoint_epochs"}
    # The checkpoint decides whether a run can resume with other values of these.
    execution = {f"recipe.{name}": name for name in EXECUTION_FIELDS if one}
    other = [k for k in sorted({*there, *here} - free - {*execution}) if there.get(k) != here.get(k)]
    if other:
        raise RunError(
            f"{folder} has a run with a different {other[0]}: there {there.get(other[0])}, "
            f"here {here.get(other[0])}. Resume it with --config {path}, or choose another folder"
        )
    kept = {name: there[key] for key, name in execution.items() if key in there}
    return settings | {"recipe": settings["recipe"] | kept}


def _one_line(error: Exception) -> str:
    """Return the message in one line; of an error of the system, the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines())


def _how_to_resume(run: commands.Run | None) -> str:
    if run is None:
        return ""
    if any(Path(run.folder).rglob("checkpoint.pt")):
        return ": run the same command again to resume from the checkpoint"
    return " before the first checkpoint: the same command starts again"
