"""The OpenAPI description, which schemathesis tries to refute over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from gateways import faked, refused
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from quicksilver.nouns import Endpoint
from quicksilver.serve.gateway import Gateway
from quicksilver.serve.limits import Limits
from quicksilver.serve.openapi import describe
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask

KEY = "secret"
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.ignored_auth,
]
schema = schemathesis.openapi.from_dict(describe(keys=True))


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer, Limits(api_keys=(KEY,))) as endpoint:
        yield endpoint


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_the_server_does_what_its_description_says(endpoint: Endpoint, case: Case[Any]) -> None:
    if isinstance(case.body, dict) and "model" in case.body and case.meta and case.meta.generation.mode.is_positive:
        case.body["model"] = "tiny"
    case.call_and_validate(
        base_url=endpoint.url.removesuffix("/v1"), headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS
    )


def test_the_description_needs_no_key_and_names_every_route(endpoint: Endpoint) -> None:
    described = ask(endpoint, "//openapi.json")
    assert described == describe(keys=True)
    routes = {(path, method) for path, ways in described["paths"].items() for method in ways}
    assert routes == {
        (route.path.replace(":path", ""), method.lower())
        for route in Gateway("tiny")._routes()
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert refused(endpoint, "/v1/models", b"", "GET")[0] == 401


def test_a_server_without_keys_asks_for_none() -> None:
    described = describe(keys=False)
    assert "securitySchemes" not in described["components"]
    assert not any(
        "security" in way or "401" in way["responses"] for p in described["paths"].values() for way in p.values()
    )
