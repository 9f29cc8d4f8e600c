"""How light the core is: seconds to import and to print the help, and what gets imported. The last line is JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from stamp import stamp

HEAVY = ("torch", "transformers", "openvino", "vllm")
REPEATS = 21


def timed(*command: str) -> list[float]:
    """Return the wall times of a command, ms, the first (cold) one left out."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - begun) * 1000)
    return sorted(times[1:])


def figures(times: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(times), "low": times[0], "high": times[-1]}


def main() -> int:
    """Measure and print."""
    python = sys.executable
    bare = timed(python, "-c", "pass")
    imported = timed(python, "-c", "import quicksilver")
    every = timed(python, "-c", "import quicksilver; quicksilver.optimize; quicksilver.Recipe")
    helped = timed(python, "-m", "quicksilver", "--help")
    code = f"import sys, quicksilver; quicksilver.optimize; print([m for m in {HEAVY!r} if m in sys.modules])"
    heavy = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    document = {
        "benchmark": "light",
        "python_ms": figures(bare),
        "import_ms": figures(imported),
        "import_and_use_ms": figures(every),
        "help_ms": figures(helped),
        "heavy_modules": heavy,
    }
    print(json.dumps(document | stamp()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
