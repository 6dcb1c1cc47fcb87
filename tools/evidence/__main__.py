"""``python -m decoding.tools.evidence``."""

import sys

from decoding.cli.app import app, run
from decoding.tools.evidence.command import evidence_command

if __name__ == "__main__":
    app.command("evidence")(evidence_command)
    sys.exit(run(["evidence", *sys.argv[1:]]))
