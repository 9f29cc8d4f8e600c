"""What an hour of a machine costs, and what a million tokens cost on it."""

from __future__ import annotations

import math
import os

from quicksilver.errors import BadInputError
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.score import Cost, Speed
from quicksilver.sources import instances

ASSUMED_USD_PER_CORE_HOUR = 0.05
"""The round figure for a machine of which nothing was said; near the list price of a cloud's vCPU."""


def price(
    usd_per_hour: float | None = None,
    instance: str | None = None,
    discount: float = 0.0,
    input_output_ratio: float = 3.0,
    *,
    cores: int | None = None,
) -> Price:
    """Return the price of a machine: as given, a named instance's list price, or an assumption by its cores.

    `usd_per_hour` goes before the instance's list price and both are before the discount (0 to below 1). `cores` are
    those of this machine if not given. Raises BadInputError for a number that is no price, for an unknown name, and for an
    instance whose price isn't known.
    """
    _check("price per hour", usd_per_hour, above=0.0)
    _check("discount", discount, least=0.0, below=1.0)
    _check("input to output ratio", input_output_ratio, least=0.0)
    if usd_per_hour is not None:
        usd, source = usd_per_hour, f"given for {instance}" if instance else "given"
    elif instance is not None:
        rate = instances.find(instance).rate()
        if rate is None:
            raise BadInputError(f"No price of {instance} is known; give --price-per-hour.")
        usd, source = rate.usd_per_hour, f"{instance}, {rate.where}, list price of {rate.date} ({rate.source})"
    else:
        count = cores or os.cpu_count() or 1
        usd = ASSUMED_USD_PER_CORE_HOUR * count
        source = f"assumed: ${ASSUMED_USD_PER_CORE_HOUR:.2f} per core-hour x {count} core{'s' if count > 1 else ''}"
    return Price(usd_per_hour=usd, source=source, discount=discount, input_output_ratio=input_output_ratio)


def cost(speed: Speed, price: Price) -> Cost | None:
    """Return dollars per million tokens at a speed; None if no token came.

    measured: $ per hour after the discount, over the output tokens of an hour at the measured throughput.
    blended: (1 - discount) x $ per hour / (concurrency / p50 ITL in s x 3600 / 10^6) / (1 + ratio), as SageMaker's page
    on inference optimisation defines it (with its 3 input tokens to 1 output token it divides by 4); None where no
    answer had a gap between pieces, and for an open loop, which has no concurrency. `Cost.usd_per_hour` is after the discount.
    """
    return cost_at(speed.tokens_per_s.value, speed.concurrency, speed.itl_ms.p50, price)


def cost_at(tokens_per_s: float, concurrency: int, itl_p50_ms: float, price: Price) -> Cost | None:
    """Return dollars per million tokens, as `cost` does, for figures that need not be measured ones."""
    if tokens_per_s <= 0:
        return None
    usd = (1 - price.discount) * price.usd_per_hour
    gap_s = itl_p50_ms / 1000
    blended_throughput = concurrency / gap_s if concurrency and gap_s > 0 else None
    return Cost(
        usd_per_hour=usd,
        measured=usd / (tokens_per_s * 3600 / 1e6),
        blended=blended_throughput and usd / (blended_throughput * 3600 / 1e6) / (1 + price.input_output_ratio),
        blended_throughput=blended_throughput,
    )


def _check(
    what: str,
    value: float | None,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> None:
    if value is None:
        return
    if not math.isfinite(value):
        raise BadInputError(f"The {what} has to be a number, not {value}.")
    if (above is not None and value <= above) or (least is not None and value < least):
        raise BadInputError(f"The {what} has to be {'above' if above is not None else 'at least'} 0, not {value:g}.")
    if below is not None and value >= below:
        raise BadInputError(f"The {what} has to be below {below:g}, not {value:g}: give it as a share, such as 0.3.")
