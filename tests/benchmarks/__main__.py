"""Run of all benchmarks, one after the other. Prints their tables and writes `docs/benchmarks.md`.

python -m tests.benchmarks            about 16 minutes on two quiet cores
python -m tests.benchmarks --small    about five minutes, writes nothing
"""

import argparse

from tests.benchmarks import burst, limits, rows, scale
from tests.benchmarks.results import page
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="1,000 entries each; print the tables only")
    options = parser.parse_args()
    small = options.small
    found = []
    for benchmark, *arguments in (
        (burst.benchmark, [1000] if small else [1000, 10000]),
        (limits.benchmark, [1000] if small else [10000]),
        (burst.benchmark, [1000], "rabbitmq"),
        (scale.benchmark, [1000] if small else [1000, 20000, 100000]),
        (rows.benchmark, [1000] if small else [1000, 10000]),
    ):
        found.append(benchmark(*arguments))
        print(found[-1].text())
    if not small:
        PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
