"""What a pass over all linear layers of a real model costs on a CPU, by number of rows and form of the product.

    python benchmarks/linear_products.py [--models NAME,NAME] [--rows 1,4] [--threads 2]

Greedy search reads one row a step, contrastive search as many as candidates, a contrast as many as readers: how much
longer the products of a few rows take is what is left of their price after everything else. The forms are those that
the library chooses from (decoding/models/linear_forms.py); copies of the weights are made for "packed", and a C
compiler is needed for "compiled". Every pass goes through all layers in turn, so that their weights come from memory as
in a step. Forms take turns; medians go to a table and a CSV file. Models, and processors without AVX-512, are those of
benchmarks/real_models.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_models import cpu_name, fetched_models
from turns import environment, percentile_columns, percentiles, read_csv, replaced, write_csv

KEY = ("model", "rows", "form", "threads", "cpu", "cpu_capability")
COLUMNS = [
    "model", "rows", "form", *percentile_columns("ms_per_pass"), "gb_per_s", "ratio_to_one_row",
    "repeats", "threads", "cpu", "cpu_capability", "torch",
]  # fmt: skip


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), help="by default all that were fetched")
    parser.add_argument("--rows", type=lambda text: [int(number) for number in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "linear_products.csv")
    options = parser.parse_args()
    models = options.models or fetched_models()
    if not models:
        print("skipped: no model was fetched (decoding fetch NAME), and --models names none")
        return 0
    for model in models:
        rows = measured(model, options.rows, options.threads, options.repeats)
        write_csv(replaced(read_csv(options.output), rows, KEY), COLUMNS, options.output)
    print(f"\nwritten: {options.output}")
    return 0


def measured(name: str, numbers: list[int], threads: int, repeats: int) -> list[dict[str, Any]]:
    """All forms and numbers of rows of one model, taking turns."""
    import torch

    import decoding
    from decoding.models.linear_forms import FORMS, is_usable
    from decoding.models.small_batch_linear import is_plain_linear

    torch.set_num_threads(threads)
    model, _ = decoding.load(name, dtype="float32")
    layers = [module for module in model.modules() if is_plain_linear(module)]
    size = sum(layer.weight.nbytes for layer in layers)
    forms = list(filter(is_usable, FORMS))
    cases = [(1, "linear"), *((rows, form) for rows in numbers for form in forms if (rows, form) != (1, "linear"))]
    times: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    with torch.no_grad():
        for turn in range(1 + repeats):
            for rows, form in cases:
                seconds = one_pass(FORMS[form], layers, rows)
                if turn:  # the first prepares
                    times[rows, form].append(1000 * seconds)
    facts = {
        "repeats": repeats, "threads": threads, "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(), "torch": environment("cpu")["torch"],
    }  # fmt: skip
    print(f"\n{name}: {len(layers)} linear layers, {size / 1e6:.0f} MB, {threads} threads")
    print(f"{'rows':>6}  {'form':12}{'ms/pass':>10}{'GB/s':>8}{'x one row':>11}")
    found = []
    for (rows, form), spent in times.items():
        median = statistics.median(spent)
        ratio = statistics.median(ms / one for ms, one in zip(spent, times[1, "linear"], strict=True))
        print(f"{rows:>6}  {form:12}{median:10.1f}{size / median / 1e6:8.1f}{ratio:11.2f}")
        found.append(
            {
                "model": name, "rows": rows, "form": form, **percentiles("ms_per_pass", spent),
                "gb_per_s": f"{size / median / 1e6:.1f}", "ratio_to_one_row": f"{ratio:.3f}", **facts,
            }
        )  # fmt: skip
    return found


def one_pass(product: Callable[[Any, Any], Any], layers: list[Any], rows: int) -> float:
    """Seconds of the products of all layers with so many rows."""
    states = {layer.in_features: layer.weight.new_ones(rows, layer.in_features) for layer in layers}
    start = time.perf_counter()
    for layer in layers:
        product(states[layer.in_features], layer)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
