"""The main job with nothing built yet: minutes, peak memory and what it chose. The last line is one JSON document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quicksilver.sources.home import HOME_VARIABLE
from stamp import stamp

COMMAND = ("optimize", "smollm2-135m-instruct", "--workload", "hotpotqa", "--goal", "cost", "--json")


def main() -> int:
    """Run it in an empty cache folder, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "quicksilver", *COMMAND, "--runs", str(Path(folder) / "runs")],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | {HOME_VARIABLE: str(Path(folder) / "home")},
        )
        result = json.loads(done.stdout)
    best = next(c for c in result["candidates"] if c["label"] == result["best"])
    document = {
        "benchmark": "main_job",
        "command": " ".join(("quicksilver", *COMMAND)),
        "minutes": result["seconds"]["total"] / 60,
        "peak_memory_mb": result["peak_memory_mb"],
        "best": result["best"],
        "ratios": {f"{s['concurrency']} streams": s["ratio"]["value"] for s in best["score"]["speed"]},
        "quality_loss_percent": best["score"]["quality"]["loss_percent"]["value"],
    }
    print(json.dumps(document | stamp()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
