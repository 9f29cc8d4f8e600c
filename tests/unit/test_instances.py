"""The catalogue of machines: what it has, what a user's file changes, and what a broken one says."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Rate
from quicksilver.sources import instances

OURS = """
[accelerator."MI300X"]
memory_gb = 206.1
bandwidth_gb_s = 5300
tflops = { bf16 = 1307 }
link_gb_s = 64
source = "AMD data sheet, 2023"

[[family]]
accelerator = "MI300X"
cpu = "AMD EPYC 9354"
source = "our rack"
[family.sizes]
"rack-1" = { accelerators = 2, vcpus = 64, cores = 32, memory_gib = 256 }

[[prices]]
where = "Zurich"
date = "2023-11"
source = "our lease"
[prices.usd_per_hour]
"rack-1" = 2.4
"g5.12xlarge" = 4.0
"""


@pytest.fixture
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(instances.CONFIG_VARIABLE, str(tmp_path))
    return tmp_path / "instances.toml"


def test_the_catalogue_has_every_family_that_is_planned_for(users_file: Path) -> None:
    known = instances.instances()
    for name in ("p5.48xlarge", "p5en.48xlarge", "p4d.24xlarge", "p4de.24xlarge", "trn1.32xlarge", "inf2.48xlarge",
                 "g5.xlarge", "g5.48xlarge", "g6.xlarge", "g6e.48xlarge", "c7i.large", "c7a.48xlarge", "c8g.48xlarge", "m7i.4xlarge"):  # fmt: skip
        assert known[name].name == name
    for name, one in known.items():
        assert one.name == name
        assert (one.accelerator is None) == (one.accelerators == 0)
        assert one.cores <= one.vcpus
        assert one.source
        for rate in one.rates:
            assert 0 < rate.usd_per_hour < 200
            assert rate.source
            assert rate.date > "2023"


def test_the_given_prices_are_there_with_their_date(users_file: Path) -> None:
    given = {"ml.p5.48xlarge": 113.068, "ml.p4d.24xlarge": 37.688, "ml.g5.12xlarge": 7.09, "ml.inf2.48xlarge": 15.58,
             "ml.trn1.32xlarge": 28.497, "p5.48xlarge": 98.32, "p4d.24xlarge": 32.7726, "g5.12xlarge": 5.672,
             "inf2.48xlarge": 12.98127, "trn1.32xlarge": 21.5}  # fmt: skip
    for name, usd in given.items():
        rate = instances.find(name).rate("on-demand", "2024")
        assert rate is not None
        assert rate.usd_per_hour == usd


def test_the_newest_price_counts(users_file: Path) -> None:
    newest = instances.find("p5.48xlarge").rate()
    assert newest is not None
    assert (newest.usd_per_hour, newest.date) == (55.04, "2025-11-30")
    assert instances.find("p4d.24xlarge").rate("one-year") is not None


def test_an_ml_instance_is_the_same_machine_at_another_price(users_file: Path) -> None:
    plain, managed = instances.find("g6e.48xlarge"), instances.find("ml.g6e.48xlarge")
    assert managed.accelerator == plain.accelerator
    assert managed.memory_gb == plain.memory_gb
    assert managed.rate() != plain.rate()
    assert managed.rate("one-year") is None
    with pytest.raises(BadInputError, match="did you mean"):
        instances.find("ml.c8g.large")  # SageMaker doesn't offer it


def test_makers_figures_hang_together(users_file: Path) -> None:
    h100 = instances.find("p5.48xlarge").accelerator
    a100 = instances.find("p4d.24xlarge").accelerator
    assert h100 is not None
    assert a100 is not None
    assert h100.tflops["fp8"] == pytest.approx(2 * h100.tflops["bf16"], rel=0.01)
    assert a100.bandwidth_gb_s == 1555, "that of the 40 GB device"
    assert "fp8" not in a100.tflops
    cpu = instances.find("c7i.48xlarge")
    assert cpu.bandwidth_gb_s == pytest.approx(2 * 307.2)
    assert cpu.tflops["bf16"] == pytest.approx(96 * 2.4 * 2048 / 1e3)


def test_a_users_file_adds_and_goes_before(users_file: Path) -> None:
    before = instances.find("g5.12xlarge")
    users_file.write_text(OURS, encoding="utf-8")
    rack = instances.find("rack-1")
    assert rack.accelerator is not None
    assert (rack.accelerator.name, rack.accelerators, rack.rates[0].where) == ("MI300X", 2, "Zurich")
    assert rack.memory_gb == pytest.approx(274.88)
    # An old price of the user's own counts more than a newer one of a list.
    assert instances.find("g5.12xlarge").rates[0].usd_per_hour == 4.0
    assert instances.find("g5.12xlarge").rates[1:] == before.rates


def test_a_changed_file_is_read_again(users_file: Path) -> None:
    users_file.write_text(OURS, encoding="utf-8")
    assert instances.find("rack-1").accelerators == 2
    users_file.unlink()
    with pytest.raises(BadInputError, match=r"There is no instance named 'rack-1'"):
        instances.find("rack-1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[[family]]", "[[family"), r"not valid TOML: .*line 9"),
        (("vcpus = 64", "vcpus = 0"), r"line 14: family\.0\.sizes\.rack-1\.vcpus: input should be greater than 0"),
        (("bandwidth_gb_s = 5300", "bandwith = 5300"), r"line 2: accelerator\.MI300X\.bandwidth_gb_s: field required"),
        (('accelerator = "MI300X"', 'accelerator = "MI400"'), r"line 10: no accelerator is named 'MI400'"),
        (("2.4", "-2.4"), r"line 21: the price of 'rack-1' has to be above 0"),
        (('"rack-1" = 2.4', '"rack-2" = 2.4'), r"line 21: it gives a price of 'rack-2'"),
        (("2023-11", "last year"), r"line 18: prices\.0\.date: string should match pattern"),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_line(users_file: Path, change: tuple[str, str], words: str) -> None:
    users_file.write_text(OURS.replace(*change), encoding="utf-8")
    with pytest.raises(BadInputError, match=words) as caught:
        instances.instances()
    assert str(caught.value).startswith(str(users_file))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(users_file: Path) -> None:
    users_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="is not UTF-8 text"):
        instances.instances()


@pytest.mark.parametrize(
    ("when", "today", "old"),
    [("2024", date(2026, 1, 1), True), ("2024", date(2025, 6, 1), False), ("2025-11-30", date(2026, 11, 29), False),
     ("2025-11-30", date(2026, 12, 2), True), ("2025-02", date(2026, 3, 15), True)],
)  # fmt: skip
def test_a_price_older_than_a_year_is_warned_of(users_file: Path, when: str, today: date, old: bool) -> None:
    rate = Rate(usd_per_hour=98.32, where="us-east-1", date=when, source="EC2 price list")
    warning = instances.stale(rate, today)
    assert (warning is not None) == old
    if warning:
        assert "$98.32 an hour" in warning
        assert when in warning
