"""Turn what pragmatiq's simulator wrote into prepared sets of the few-label benchmark.

    pip install pragmatiq==1.1.0      # in an environment of its own
    pragmatiq synth generate --n-users 8000 --seed 11 --out SIMULATED
    python scripts/synthetic.py SIMULATED -o DATA [--users N]
    python scripts/bench/few_labels.py --data DATA --sets synthetic_churn,synthetic_default

writes DATA/prepared/synthetic_default and DATA/prepared/synthetic_churn. What is measured on them
is measured on a simulator and called synthetic.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundation.errors import UserError, listing, nearest
from scripts.bench.fewlabels.sets import SYNTHETIC
from scripts.bench.fewlabels.synthetic import prepare_synthetic


def main(arguments: list[str] | None = None) -> int:
    """Write the sets and say what they hold; exit code 2 for a folder that is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("simulated", type=Path, help="what pragmatiq synth generate wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a data folder")
    parser.add_argument("--sets", default=",".join(SYNTHETIC), help=f"of {', '.join(SYNTHETIC)}")
    parser.add_argument("--users", type=int, help="only the first so many (default: all)")
    given = parser.parse_args(arguments)
    names = tuple(filter(None, given.sets.split(",")))
    try:
        for name in names:
            if name not in SYNTHETIC:
                raise UserError(
                    f"unknown set '{name}'{nearest(name, SYNTHETIC)}; sets: {listing(SYNTHETIC)}"
                )
        made = prepare_synthetic(given.simulated, given.output / "prepared", names, given.users)
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    for folder in made:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        events = sum(source["rows"] for source in meta["sources"].values())
        print(
            f"wrote {folder}: {meta['title']}; {events:,} events before {meta['as_of']}; pool "
            f"{meta['n_pool']} ({meta['n_bad_pool']} bad), test {meta['n_test']} "
            f"({meta['n_bad_test']} bad); {meta['notes'][1]}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
