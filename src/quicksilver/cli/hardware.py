"""`quicksilver hardware`: this machine with what it gives, and the machines that can be rented."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import emit, json_option, note, pairs, table
from quicksilver.errors import QuicksilverError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from quicksilver.machine import Measured
    from quicksilver.nouns.instance import Instance, Rate


@click.group(invoke_without_command=True, short_help="This machine, measured; instances that can be rented.")
@click.option("--measure", "anew", is_flag=True, help="Measure it again: memory bandwidth and matrix products.")
@json_option
@click.pass_context
def hardware(context: click.Context, anew: bool) -> None:
    """Describe this machine, what its memory and cores were measured to give, and what an hour is assumed to cost.

    It is measured at the first call and with --measure. `list` shows the instances that can be rented, `show` describes one.
    """
    if context.invoked_subcommand is not None:
        return
    from quicksilver import machine
    from quicksilver.bench.price import price
    from quicksilver.hardware import detect

    found = detect()
    cost = price(cores=found.cores)
    measured = None if anew else machine.kept()
    if measured is None:
        note("Measuring this machine: a few seconds.")
        try:
            measured = machine.measure()
        except QuicksilverError as error:
            note(str(error))
    facts = {
        "processor": found.cpu,
        "cores": found.cores,
        "memory": f"{found.memory_gb:g} GB",
        **_said(measured),
        "instruction sets": ", ".join(found.isa) or "none that matter",
        "accelerators": ", ".join(found.accelerators) or "none",
        "price": f"${cost.usd_per_hour:.2f} an hour ({cost.source})",
    }
    document = found.model_dump(mode="json") | {
        "price": cost.model_dump(mode="json"),
        "measured": measured and measured.model_dump(mode="json"),
    }
    emit(document, lambda out: out.print(pairs(facts)))


def _said(measured: Measured | None) -> dict[str, str]:
    """What was measured, for people."""
    if measured is None:
        return {"memory bandwidth": "not measured"}
    products = f"{measured.fp32_gflop_s:,.0f} GFLOP/s in fp32 (numpy {measured.numpy})"
    if measured.bf16_gflop_s:
        products += f", {measured.bf16_gflop_s:,.0f} in bf16 (OpenVINO {measured.openvino})"
    return {
        "memory bandwidth": f"{measured.bandwidth_gb_s:,.1f} GB/s",
        "matrix products": products,
        "measured": f"{_ago(measured.age_days)}; --measure does it again",
    }


def _ago(days: float) -> str:
    if days < 1 / 24:
        return "just now" if days < 1 / 1440 else f"{days * 1440:.0f} minutes ago"
    return f"{days * 24:.0f} hours ago" if days < 2 else f"{days:.0f} days ago"


@hardware.command("list")
@click.argument("words", nargs=-1)
@json_option
def list_instances(words: tuple[str, ...]) -> None:
    """List the instances that can be rented; WORDS keep those whose name or accelerator has one of them."""
    from quicksilver.sources.instances import instances

    found = [one for one in instances().values() if not words or any(_has(one, word) for word in words)]
    if not found:
        note(f"No instance has {' or '.join(words)} in its name or accelerator.")
    rows = [
        [
            one.name,
            f"{one.accelerators} x {one.accelerator.name}" if one.accelerator else one.cpu,
            f"{one.accelerators * one.accelerator.memory_gb:,.0f}" if one.accelerator else f"{one.memory_gb:,.0f}",
            _bandwidth(one),
            str(one.vcpus),
            *_money(one),
        ]
        for one in found
    ]
    heads = ["instance", "computes on", "memory GB", "GB/s", "vCPUs", "$/h", "$/h one year", "date"]
    emit(
        [one.model_dump(mode="json") for one in found],
        lambda out: out.print(table(heads, rows, right=(2, 3, 4, 5, 6))),
    )


def _has(one: Instance, word: str) -> bool:
    text = one.name + (f" {one.accelerator.name}" if one.accelerator else f" {one.cpu}")
    return word.lower() in text.lower()


def _bandwidth(one: Instance) -> str:
    if one.accelerator is not None:
        return f"{one.accelerators * one.accelerator.bandwidth_gb_s:,.0f}"
    return f"{one.bandwidth_gb_s:,.0f}" if one.bandwidth_gb_s else ""


def _money(one: Instance) -> list[str]:
    rates = [one.rate("on-demand"), one.rate("one-year")]
    dates = sorted({rate.date for rate in rates if rate is not None})
    return [*(f"{rate.usd_per_hour:.4g}" if rate else "" for rate in rates), " and ".join(dates)]


@hardware.command("show")
@click.argument("name")
@json_option
def show_instance(name: str) -> None:
    """Describe the instance NAME: its devices, memory and prices, each with its source."""
    from quicksilver.sources.instances import find, stale

    one = find(name)
    emit(one.model_dump(mode="json"), lambda out: _show(out, one))
    today = datetime.now(UTC).date()
    newest = [rate for rate in (one.rate("on-demand"), one.rate("one-year")) if rate is not None]
    for warning in (stale(rate, today) for rate in newest):
        if warning:
            note(warning)
    if not newest:
        note(f"No price of {name} is known.")


def _show(out: Console, one: Instance) -> None:
    device = one.accelerator
    facts: dict[str, Any] = {
        "instance": one.name,
        "processor": f"{one.cpu}, {one.vcpus} vCPUs, {one.cores} cores",
        "memory": f"{one.memory_gb:,g} GB" + (f", {one.bandwidth_gb_s:,g} GB/s at most" if one.bandwidth_gb_s else ""),
        "CPU at most": _tflops(one.tflops),
        "source": one.source,
    }
    if device is not None:
        facts |= {
            "accelerators": f"{one.accelerators} x {device.name}",
            "memory of each": f"{device.memory_gb:g} GB, {device.bandwidth_gb_s:,g} GB/s",
            "computes": _tflops(device.tflops),
            "link": f"{device.link_gb_s:g} GB/s to a neighbour, one direction",
            "in aiconfigurator": device.system or "no: figures are by roofline",
            "its source": device.source,
        }
    out.print(pairs(facts))
    if one.rates:
        out.print()
        rows = [_price(rate) for rate in one.rates]
        out.print(table(["$/h", "paid", "where", "date", "source"], rows, right=(0,)))


def _tflops(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{precision} {rate:g}" for precision, rate in rates.items()) + (" TFLOP/s" if rates else "")


def _price(rate: Rate) -> list[str]:
    return [f"{rate.usd_per_hour:g}", rate.commitment, rate.where, rate.date, rate.source]
