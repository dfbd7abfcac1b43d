"""The app as its OpenAPI description says: fuzzed, and watched."""

from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from anystep.studio.openai_images import EditFields

from .conftest import Running
from .test_images_routes import png


def no_fault(context: Any, response: Any, case: Any) -> None:
    """Nothing but a deadline that was asked for is an error of the server."""
    assert response.status_code < 500 or (response.status_code == 504 and "deadline" in case.body)


CHECKS = [
    no_fault, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip


def fuzz(running: Running, examples: int) -> None:
    """Ask for everything that is described, as it is and as it is not, and check the answers."""
    described = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operations = [each.ok() for each in described.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and not list(operation.body):
                continue

            @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                # a form of one number reads as a list of one would, so that what it violates cannot be seen
                rejects = [] if case.path.endswith("/edits") else [negative_data_rejection]
                case.call_and_validate(checks=[*CHECKS, *rejects], timeout=60)

            ask()


def test_no_request_gets_an_answer_that_is_not_described(service: Running) -> None:
    fuzz(service, 8)


@pytest.mark.slow
def test_no_request_of_many_gets_an_answer_that_is_not_described(service: Running) -> None:
    fuzz(service, 300)


FIELDS = sorted(EditFields.model_fields)
ODD = [
    "", "0", "-1", "1e999", "nan", "[]", "{}", "null", "true", "\0", "1x1", "99999x99999", "9" * 400, "[0, 1", "\u0661",
    "a\r\nb: c",
]  # fmt: skip


@given(st.sampled_from(FIELDS), st.sampled_from(ODD) | st.text(max_size=20), st.sampled_from(["", "[]"]))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_a_field_of_a_form_holds_an_edit_is_drawn_or_the_reason_told(
    service: Running, name: str, text: str, ending: str
) -> None:
    form = {"prompt": "a whale", "model": "tiny", "guidance": "1", name + ending: text}
    answer = httpx2.post(f"{service.url}/v1/images/edits", data=form, files={"image": png()}, timeout=60)
    if answer.status_code == 200:
        assert '"b64_json":' in answer.text or '"url":' in answer.text
    else:
        assert answer.status_code in ((400, 404, 504) if name == "deadline" else (400, 404))
        assert answer.json()["error"]["message"]


def test_metrics_count_what_was_drawn(service: Running) -> None:
    before = metrics(service)
    body = {"prompt": "a whale", "steps": 3, "n": 2, "guidance": 2, "model": "tiny"}
    assert httpx2.post(f"{service.url}/v1/images/generations", json=body, timeout=30).status_code == 200
    after = metrics(service)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('anystep_images_total{model="tiny",outcome="drawn"}') == 2
    assert grown('anystep_network_evaluations_total{model="tiny"}') == 2 * 3 * 2
    assert grown('anystep_latency_seconds_count{model="tiny",steps="4"}') == 2
    assert grown("anystep_batch_images_sum") == 2
    assert after["anystep_queue_length"] == after["anystep_running_images"] == 0
    assert after["anystep_memory_bytes"] > 10**7


def metrics(running: Running) -> dict[str, float]:
    lines = httpx2.get(f"{running.url}/metrics").text.splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_a_server_that_is_about_to_end_is_not_ready_but_lives(service: Running) -> None:
    service.service.ready = False
    assert httpx2.get(f"{service.url}/readyz").status_code == 503
    assert httpx2.get(f"{service.url}/healthz").status_code == 200
    service.service.ready = True
    assert httpx2.get(f"{service.url}/readyz").status_code == 200
