"""The entry point of the command line: `icd --help`. The commands are in `icd.cli.commands`."""

from __future__ import annotations

import sys

#: The first line of each command's help. PyTorch is imported only to run one: that takes seconds.
COMMANDS = {
    "teach": "Train a network on labels alone: a teacher, or a baseline.",
    "distil": "Train a student from a teacher.",
    "reproduce": "Train the network of a published run, by the name of its recipe.",
    "compare": "Compare methods over seeds: a table of results, and differences with intervals.",
    "evaluate": "Measure the accuracy of a trained network.",
    "predict": "Name the bird in a picture.",
    "pack": "Save a trained network with 16 bits a weight, in half the space.",
    "draw": "Draw the Birdlets data set, in the layout of CUB-200-2011.",
    "methods": "List the methods and their objectives.",
    "recipes": "List the recipes of the published runs with their figures, or show one.",
    "networks": "List the networks and their numbers of weights for 200 classes.",
}
USAGE = "usage: icd [-h] COMMAND ..."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in ("-h", "--help"):
        print(f"{USAGE}\n\ncommands:")
        print("\n".join(f"  {name:10} {line}" for name, line in COMMANDS.items()))
        print("\n`icd COMMAND --help` lists the options of a command.")
        return 0
    if not words or words[0] not in COMMANDS:
        from icd.errors import did_you_mean

        wrong = f'there is no command "{words[0]}":' if words else "a command is missing:"
        hint = did_you_mean(words[0], list(COMMANDS)) if words else ""
        print(f"{USAGE}\nicd: error: {wrong}{hint} `icd --help` lists them", file=sys.stderr)
        return 2
    try:
        from icd.cli.execute import execute
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return execute(words[0], words[1:])
