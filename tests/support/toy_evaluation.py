"""An evaluation of numbers whose process can be made to end badly, as a command that Ray's workers can import."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoding.errors import InputError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.runner import run
from decoding.evals.engine.task import Document, Task
from decoding.strategies.registry import parse_strategy


class Toy(Task):
    """Figures made of numbers. At the document ``fatal``, this process kills itself, the first so many times."""

    name = "toy"

    def __init__(self, documents: int, seconds: float, bad: int | None, fatal: int | None, deaths: Path) -> None:
        self.count, self.seconds, self.bad, self.fatal, self.deaths = documents, seconds, bad, fatal, deaths

    def documents(self) -> list[Document]:
        return [Document(f"d{i}", i) for i in range(self.count)]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
        time.sleep(self.seconds)
        if document.content == self.fatal and (left := int(self.deaths.read_text())):
            self.deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if document.content == self.bad:
            raise InputError("its answer is too long")
        drawn = [random.Random(configuration.seed(document.id)).random() for configuration in configurations]
        return [{"metrics": {"right": float(share < 0.4), "share": share}} for share in drawn]


def toy_command(
    output: Path,
    documents: int = 20,
    seconds: float = 0.0,
    bad: int | None = None,
    fatal: int | None = None,
    deaths: int = 0,
) -> None:
    """Evaluate, and print how many documents there were."""
    left = output / "deaths.txt"
    if fatal is not None and not left.exists():
        output.mkdir(parents=True, exist_ok=True)
        left.write_text(str(deaths))
    made = [Configuration(parse_strategy(name), {"strategy": name, "parameters": {}}) for name in ("greedy", "dola")]
    results = run(Toy(documents, seconds, bad, fatal, left), made, output=output)
    if results is not None:
        print(results["counts"]["evaluated"])
