"""What clients are told when there is no answer: one shape, and nothing of the node or of Ray in it."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError
from starlette.responses import StreamingResponse

from slm_ray.serving.failures import OneErrorShape, failure, failure_of, presentable

SECRETS = ("/srv", "node7", "Traceback", "RayTask", "0123abcd", "pid=")


class RaysRefusal(Exception):
    """As Ray's ingress raises what the engine refused: status and message as attributes."""

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(message)
        self.status_code, self.message = status_code, message


class Body(BaseModel):
    n: int


def told(app: FastAPI, path: str = "/") -> tuple[int, dict[str, object], str]:
    reply = TestClient(app, raise_server_exceptions=False).get(path)
    return reply.status_code, reply.json()["error"], reply.text


def raising(error: Exception) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise error

    app.add_exception_handler(HTTPException, lambda request, error: failure_of(error))
    app.add_middleware(OneErrorShape)
    return app


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (RuntimeError("Traceback: /srv/secret/engine.py on node7 (pid=31)"), 500, "internal_error", "its log says why"),
        (RaysRefusal(500, "RayTaskError at /srv/x.py"), 500, "internal_error", "its log"),
        (RaysRefusal(502, "node7 is gone"), 502, "internal_error", "its log"),
        (RaysRefusal(400, "top_k is odd (Request ID: 0123abcd)"), 400, "bad_request", "top_k is odd"),
        (RaysRefusal(400, "This model's maximum context length is 2048 tokens"), 400, "context_length_exceeded", "2048 tokens"),
        (RaysRefusal(408, "too slow"), 408, "timeout", "too slow"),
        (RaysRefusal(7, "node7"), 500, "internal_error", "its log"),
        (HTTPException(404, "the model 'x' does not exist; GET /v1/models lists what there is"), 404, "model_not_found", "GET /v1/models"),
        (HTTPException(503, "no alias can be looked up: /srv/adapters/promotions.jsonl:3 is damaged"), 503, "unavailable", ": promotions.jsonl:3 is"),
    ],
)  # fmt: skip
def test_an_exception_is_told_in_one_shape_without_our_inside(
    error: Exception, status: int, code: str, words: str
) -> None:
    got, body, text = told(raising(error))
    assert (got, body["code"], set(body)) == (status, code, {"code", "message", "type", "param"})
    assert words in str(body["message"])
    assert not [secret for secret in SECRETS if secret in text]


def test_what_ray_wraps_around_a_replica_s_exception_stays_inside() -> None:
    from ray.exceptions import RayTaskError

    trace = 'Traceback (most recent call last):\n  File "/srv/engine.py", line 3 on node7 (pid=31)\nValueError: no'
    ours = RayTaskError(
        "f", trace, HTTPException(400, "the adapter cannot be used: /srv/cache/a1: rank 9")
    ).as_instanceof_cause()
    foreign = RayTaskError("f", trace, ValueError("/srv/secret")).as_instanceof_cause()
    status, body, text = told(raising(ours))
    assert (status, body["message"]) == (400, "the adapter cannot be used: a1: rank 9") and "node7" not in text
    status, body, text = told(raising(foreign))
    assert status == 500 and not [secret for secret in SECRETS if secret in text]


def test_a_body_that_cannot_be_read_names_the_field_and_repeats_nothing_of_it() -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"n": "secret-value"})
    response = failure_of(caught.value)
    assert response.status_code == 400 and b'"param":"n"' in response.body and b"secret-value" not in response.body


def test_an_answer_that_has_begun_is_broken_off() -> None:
    app = FastAPI()

    @app.get("/")
    def begin() -> StreamingResponse:
        def chunks():  # type: ignore[no-untyped-def]
            yield b"data: 1\n\n"
            raise RuntimeError("/srv")

        return StreamingResponse(chunks())

    app.add_middleware(OneErrorShape)
    with pytest.raises(RuntimeError):
        TestClient(app).get("/")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("no file /a/b/c.json here", "no file c.json here"),
        ("GET /v1/models lists", "GET /v1/models lists"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("one\n  two\tthree", "one two three"),
        ("and/or", "and/or"),
        ("x" * 600, "x" * 499 + "…"),
    ],
)
def test_what_may_be_said(message: str, said: str) -> None:
    assert presentable(message) == said


def test_a_status_alone_is_enough() -> None:
    assert failure(429).status_code == 429 and b"rate_limit_error" in failure(429).body
