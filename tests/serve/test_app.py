from microgpt_serve.app import create_app
from starlette.testclient import TestClient


def test_health_answers_ok() -> None:
    response = TestClient(create_app()).get("/health")
    assert (response.status_code, response.text) == (200, "ok")
