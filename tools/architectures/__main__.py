"""``python -m decoding.tools.architectures``."""

import sys

from decoding.cli.app import app, run
from decoding.tools.architectures.command import architectures_command

if __name__ == "__main__":
    app.command("architectures")(architectures_command)
    sys.exit(run(["architectures", *sys.argv[1:]]))
