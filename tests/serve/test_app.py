from microgpt_serve.app import create_app
from microgpt_serve.settings import Settings
from starlette.testclient import TestClient


def test_health_answers_ok() -> None:
    response = TestClient(create_app(Settings())).get("/health")
    assert (response.status_code, response.text) == (200, "ok")
