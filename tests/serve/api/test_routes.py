"""The table of routes."""

from typing import Any, get_args, get_type_hints

import pytest
from microgpt_serve.api.endpoint import Endpoint
from microgpt_serve.api.routes import ENDPOINTS
from starlette.responses import Response


def row_id(value: Any) -> str:
    return f"{value.method} {value.path}"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=row_id)
def test_a_handler_takes_and_returns_the_types_of_its_row(endpoint: Endpoint) -> None:
    hints = get_type_hints(endpoint.handler)
    assert hints.get("body") == endpoint.body
    returned = hints["return"]
    expected = {endpoint.response or Response, *([Response] if endpoint.stream else [])}
    assert set(get_args(returned) or [returned]) == expected
