"""How long a plan takes: 8 instances x 20 recipes, and the whole catalogue. The last line is one JSON document."""

from __future__ import annotations

import argparse
import json
import sys
import time

from quicksilver.api import plan_deployment
from quicksilver.sources.instances import instances
from stamp import stamp

MODEL = "meta-llama/Llama-3.1-70B"
EIGHT = (
    "ml.p5.48xlarge", "ml.p5en.48xlarge", "ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.g6e.48xlarge", "ml.g6e.12xlarge", "ml.g6.48xlarge",
    "ml.g5.48xlarge",
)  # fmt: skip
LIMITS_S = {"8 instances": 20.0, "whole catalogue": 120.0}


def main() -> int:
    """Make both plans, and print how long each took and how many options it weighed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--only", choices=list(LIMITS_S))
    options = parser.parse_args()
    known = instances()
    found = {}
    for name, chosen in (("8 instances", [one for one in EIGHT if one in known]), ("whole catalogue", list(known))):
        if options.only not in {None, name}:
            continue
        begun = time.perf_counter()
        made = plan_deployment(options.model, slo="ttft_p95<1s,itl_p50<20ms", instances=chosen)
        seconds = time.perf_counter() - begun
        weighed = len(made.options) + len(made.refused)
        print(
            f"{name}: {seconds:.1f} s for {weighed} pairs on {len(chosen)} instances; {made.verdict}", file=sys.stderr
        )
        found[name] = {
            "seconds": round(seconds, 2),
            "limit_s": LIMITS_S[name],
            "instances": len(chosen),
            "pairs": weighed,
            "predicted": len(made.options),
            "refused": len(made.refused),
        }
    print(json.dumps({"benchmark": "plan_time", "model": options.model, "plans": found} | stamp()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
