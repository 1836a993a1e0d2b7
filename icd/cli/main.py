"""The command line: `python -m icd --help`. What a command does stands in `icd.commands`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli, capture_parser

from icd.cli.commands import COMMANDS
from icd.datasets import DataSet
from icd.errors import DataError, ModelError, NonFiniteLoss, RunError
from icd.experiments.published import published_run
from icd.experiments.run import read_settings
from icd.files import write_atomically
from icd.trainer.checkpoint import flatten
from icd.trainer.distributed import is_main_process
from icd.trainer.recipe import EXECUTION_FIELDS, Recipe

PROMISED = (DataError, ModelError, RunError, NonFiniteLoss, ValueError, OSError)
TRAINING = ("teach", "distil", "compare")
OFTEN = ("checkpoint_seconds", "checkpoint_epochs")


def _reconcile(folder: Path, settings: dict[str, Any]) -> None:
    """Raise where the folder holds a run with other settings; how steps are computed stays as it began."""
    path = folder / "config.yaml"
    one, several = (folder / "checkpoint.pt").exists(), (folder / "results.csv").exists()
    if path.exists() and (one or several):
        there, here = flatten(read_settings(path, advice="mend it, or delete it")), flatten(settings)
        # A folder may be named otherwise or moved, and a comparison grow, in a precision of its next device.
        kept = {*there, *here} - {"folder", "methods", "seeds", "recipe.precision", *OFTEN}
        # Whether a run goes on where steps are computed otherwise, its checkpoint knows; these stay as begun.
        how = {f"recipe.{name}": name for name in EXECUTION_FIELDS if one}
        other = [name for name in sorted(kept - how.keys()) if there.get(name) != here.get(name)]
        if other:
            raise RunError(
                f"{folder} holds a run with another {other[0]}: there {there.get(other[0])}, "
                f"here {here.get(other[0])}. Go on with --config {path}, or name another folder"
            )
        settings["recipe"] |= {name: there[key] for key, name in how.items() if key in there}


def _sentence(error: Exception) -> str:
    """What went wrong in one line; of what the system says, the file first and no number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines())


def _spell_out(arguments: list[str]) -> list[str]:
    """`--recipe NAME` of teach and distil with the settings that it stands for, before all other options."""
    if arguments[:1] not in (["teach"], ["distil"]):
        return arguments
    rest = [word for given in arguments[1:] for word in given.split("=", given.startswith("--recipe="))]
    if "--recipe" not in rest[:-1]:
        return arguments
    place = rest.index("--recipe")
    name = rest.pop(place + 1)
    del rest[place]
    if name.lstrip().startswith("{") or Path(name).is_file():  # settings, which the parser reads
        return arguments
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        raise ValueError(f"{name}: there is no such file")
    run = published_run(name)
    if run.teacher and arguments[0] == "teach":
        raise ValueError(
            f'"{name}" is the recipe of a student: python -m icd distil --recipe {name} makes it'
        )
    command = "distil" if run.teacher else "teach"
    return [command, "--config", json.dumps(run.settings()), *rest]


def _parser() -> Any:
    parser = capture_parser(auto_cli, COMMANDS, prog="python -m icd", allow_abbrev=False)
    for commands in parser._actions:
        if isinstance(commands, argparse._SubParsersAction):
            for name in ("teach", "distil"):
                for option in commands.choices[name]._actions:
                    if "--recipe" in option.option_strings:
                        option.help = "Name of a published run (python -m icd recipes), or path to a file."
    return parser


def _instantiate(parser: Any, chosen: Any) -> dict[str, Any]:
    try:
        return parser.instantiate(chosen)[chosen.subcommand].as_dict()
    except TypeError as error:  # a config that says `recipe: 3`
        raise RunError(
            "the settings of data and recipe are names and values: see what --config names"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for what went wrong with a reason, 130 for Ctrl-C."""
    name, options = "", dict[str, Any]()
    try:
        parser = _parser()
        try:
            given = _spell_out(sys.argv[1:] if arguments is None else arguments)
        except ValueError as error:
            parser.error(str(error))
        chosen = parser.parse_args(given)
        name = chosen.subcommand
        options = _instantiate(parser, chosen)
        options.pop("config", None)
        settings = {key: asdict(v) if isinstance(v, (DataSet, Recipe)) else v for key, v in options.items()}
        if name in TRAINING:
            settings = json.loads(json.dumps(settings))
            _reconcile(Path(options["folder"]), settings)
        # Of several processes one speaks; what goes wrong, each says for itself.
        with nullcontext() if is_main_process() else redirect_stdout(io.StringIO()):
            train = COMMANDS[name](**options)
            if train is not None:  # all is checked; `--config` reads the resolved settings again
                text = yaml.safe_dump(settings, sort_keys=False)
                write_atomically(Path(options["folder"]) / "config.yaml", text)
                train()
    except KeyboardInterrupt:
        if is_main_process():
            print(f"\nstopped{_how_to_go_on(name, options)}", file=sys.stderr)
        return 130
    except PROMISED as error:
        # In one piece, should several processes write at once.
        sys.stderr.write(f"icd {name}: {_sentence(error)}\n")
        return 1
    return 0


def _how_to_go_on(name: str, options: dict[str, Any]) -> str:
    if name not in TRAINING or "folder" not in options:
        return ""
    if any(Path(options["folder"]).rglob("checkpoint.pt")):
        return "; give the same command again to go on from its checkpoint"
    return " before its first checkpoint; the same command starts again"


if __name__ == "__main__":
    sys.exit(main())
