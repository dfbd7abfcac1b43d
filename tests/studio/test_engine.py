"""The engine: images as if alone, turns, cancelling, deadlines, draining, and one image's fault that is no other's."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
from diffusers_pipelines import make_flow_map
from PIL import Image
from torch import Tensor

from anystep.errors import InputError
from anystep.pipelines.load import Model, load
from anystep.studio.draw import Drawn, Painter
from anystep.studio.engine import Draining, Engine, EngineOptions, UnknownModel
from anystep.studio.fair_queue import QueueFull
from anystep.studio.job import Cancelled, Event, Failed, Job, Progress, Started
from anystep.studio.model_card import model_card
from anystep.studio.request import ImageRequest, Limits

from .conftest import Engines

PROMPTS = ["whale", "a red apple", "a tractor on a field of wheat", "a", "a whale, an apple and a tractor"]


class Told:
    """A listener that keeps what it is told of each job."""

    def __init__(self) -> None:
        self.events: dict[Job, list[Event]] = defaultdict(list)
        self._ended: dict[int, Flag] = defaultdict(Flag)

    def __call__(self, job: Job, event: Event) -> None:
        self.events[job].append(event)
        if isinstance(event, Drawn | Failed):
            self._ended[id(job)].set()

    def wait(self, jobs: Sequence[Job]) -> None:
        assert all(self._ended[id(job)].wait(30) for job in jobs)


class Gate:
    """Holds up every batch of an engine before its first transition until it is opened."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened, self.batches = Flag(), Flag(), list[list[ImageRequest]]()
        draw = Painter.draw

        def held(painter: Painter, requests: Sequence[ImageRequest], *arguments: Any) -> list[Drawn]:
            self.batches.append(list(requests))
            self.entered.set()
            assert self.opened.wait(30)
            return draw(painter, requests, *arguments)

        monkeypatch.setattr(Painter, "draw", held)


def request(prompt: str | int = "a whale", **options: Any) -> ImageRequest:
    return ImageRequest(prompt, "tiny", **{"steps": 2, **options})


def draw_all(engine: Engine, requests: Sequence[ImageRequest]) -> list[Drawn]:
    told = Told()
    jobs = engine.submit(requests, told)
    told.wait(jobs)
    return [job.result() for job in jobs]


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"stochasticity": 0.5}, {"size": (24, 16)}], ids=str)
def test_images_of_a_batch_have_the_bits_that_they_have_alone(
    engines: Engines, alone: Model, options: dict[str, Any]
) -> None:
    engine = engines(window=0.2)
    drawn = draw_all(engine, [request(prompt, seed=seed, **options) for seed, prompt in enumerate(PROMPTS)])
    assert [each.batch for each in drawn] == [len(PROMPTS)] * len(PROMPTS)
    for seed, (prompt, each) in enumerate(zip(PROMPTS, drawn, strict=True)):
        assert each.image.tobytes() == alone(prompt, 2, seed, guidance_in_one_batch=False, **options)[0].tobytes()
        assert each.nfe == 2 * (1 if options.get("guidance") == 1.0 else 2)


def test_images_of_a_network_of_others_are_drawn_one_by_one_as_they_are_alone(
    baselines: dict[str, Path], tmp_path: Path
) -> None:
    file = make_flow_map(baselines["sana"], tmp_path)
    alone, engine = load(file, "cpu"), Engine({"flow map": load(file, "cpu")}, EngineOptions(window=0.2))
    asked = [ImageRequest(each, "flow map", steps=2, seed=3, size=(32, 32)) for each in ("a red apple", "a whale on a")]
    drawn = draw_all(engine, [*asked, replace(asked[0], guidance=2.0, negative_prompt="blue")])
    engine.close()
    assert [each.batch for each in drawn] == [1, 1, 1]
    for request, each in zip(asked, drawn, strict=False):
        assert each.image.tobytes() == alone(request.prompt, 2, 3, size=(32, 32))[0].tobytes()
    assert drawn[2].image.tobytes() != drawn[0].image.tobytes()
    assert model_card("flow map", engine.model("flow map"), Limits())["reads_text"]


def test_more_images_at_once_than_may_ever_wait_are_no_matter_of_asking_again(engines: Engines) -> None:
    with pytest.raises(InputError, match="3 images at once: expected at most 2, which may wait here"):
        engines(waiting=2).submit([request(seed=seed) for seed in range(3)])


def test_images_to_start_from_are_drawn_together_too(engines: Engines, alone: Model) -> None:
    starts = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
    drawn = draw_all(engines(window=0.2), [request(image=start, strength=0.4, seed=7) for start in starts])
    assert [each.batch for each in drawn] == [2, 2]
    expected = [alone("a whale", 2, 7, image=start, strength=0.4, guidance_in_one_batch=False)[0] for start in starts]
    assert [each.image.tobytes() for each in drawn] == [each.tobytes() for each in expected]


def test_other_shapes_steps_and_models_are_other_batches(engines: Engines) -> None:
    others = [
        request(),
        request(steps=3),
        request(size=(24, 16)),
        request(guidance=3.0),
        ImageRequest(1, "classes", steps=2),
    ]
    assert [each.batch for each in draw_all(engines(window=0.2), others)] == [1] * len(others)


def test_a_batch_has_no_more_pixels_than_an_image_may_have(engines: Engines) -> None:
    engine = engines(Limits(pixels=2 * 16 * 16), window=0.2)
    assert max(each.batch for each in draw_all(engine, [request(seed=seed) for seed in range(5)])) == 2


def test_a_negative_prompt_is_what_guidance_leads_away_from(engines: Engines) -> None:
    plain, empty, other = draw_all(
        engines(window=0.2), [request(), request(negative_prompt=""), request(negative_prompt="a red apple")]
    )
    assert plain.image.tobytes() == empty.image.tobytes() != other.image.tobytes()
    assert plain.texts
    classes = [ImageRequest("ant", "classes", negative_prompt=each, guidance=2.0) for each in ("", "bee")]
    assert len({each.image.tobytes() for each in draw_all(engines(), classes)}) == 2
    assert not other.texts  # what `anystep generate` could not draw again says nothing


def test_every_transition_is_told_with_the_estimates_asked_for(engines: Engines) -> None:
    engine, told = engines(), Told()
    (job,) = engine.submit([request(steps=4, previews=None)], told)
    (few,) = engine.submit([request(steps=4, previews=1)], told)
    told.wait([job, few])
    start, *progress, drawn = told.events[job]
    assert start == Started()
    assert [each.transition for each in progress if isinstance(each, Progress)] == [1, 2, 3, 4]
    assert [isinstance(each.preview, Image.Image) for each in progress if isinstance(each, Progress)] == [True] * 3 + [
        False
    ]
    assert sum(isinstance(each, Progress) and each.preview is not None for each in told.events[few]) == 1
    assert isinstance(drawn, Drawn)


def test_the_estimate_before_the_last_transition_of_none_is_where_a_jump_to_the_end_leads(engines: Engines) -> None:
    """The clean-image estimate of a transition is the data in its prediction F; a jump to the end asks with r = 0."""
    finished, whole = draw_all(engines(), [request(steps=4, finish_after=0), request(steps=1)])
    assert finished.steps == 1
    assert finished.image.tobytes() == whole.image.tobytes()
    assert draw_all(engines(), [request(steps=4, finish_after=2)])[0].steps == 3


def test_users_take_turns(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = engines(batch=1, window=0.0), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request(seed=seed) for seed in range(5)], told, user="greedy")
    assert gate.entered.wait(10)
    jobs += engine.submit([request(seed=100)], told, user="modest")
    gate.opened.set()
    told.wait(jobs)
    order = [batch[0].seed for batch in gate.batches]
    assert order.index(100) <= 2
    assert sorted(order) == [0, 1, 2, 3, 4, 100]


def test_a_full_queue_takes_all_of_a_request_or_nothing(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = engines(waiting=3, batch=1, window=0.0), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request()], told)
    assert gate.entered.wait(10)
    jobs += engine.submit([request(), request()], told)
    with pytest.raises(QueueFull) as full:
        engine.submit([request(), request()])
    assert 1 <= full.value.retry_after <= 60
    assert engine.waiting == 2
    gate.opened.set()
    told.wait(jobs)
    assert all(isinstance(job.outcome, Drawn) for job in jobs)


def test_what_is_cancelled_while_it_waits_is_told_at_once_and_never_drawn(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, told = engines(batch=1, window=0.0), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request(seed=seed) for seed in range(3)], told)
    assert gate.entered.wait(10)
    engine.cancel(jobs[1:2])
    told.wait(jobs[1:2])  # although the only worker is held up
    gate.opened.set()
    told.wait(jobs)
    assert [batch[0].seed for batch in gate.batches] == [0, 2]
    with pytest.raises(Cancelled):
        jobs[1].result()


def test_what_is_cancelled_while_it_is_drawn_ends_after_a_transition(engines: Engines) -> None:
    engine, told = engines(), Told()

    def listener(job: Job, event: Event) -> None:
        told(job, event)
        if isinstance(event, Progress) and event.transition == 2:
            engine.cancel([job])

    (job,) = engine.submit([request(steps=100)], listener)
    told.wait([job])
    assert sum(isinstance(event, Progress) for event in told.events[job]) <= 3
    with pytest.raises(Cancelled):
        job.result()
    assert draw_all(engine, [request()])  # the engine goes on


def test_of_a_batch_only_what_is_cancelled_ends(engines: Engines, alone: Model) -> None:
    engine, told = engines(window=0.2), Told()

    def listener(job: Job, event: Event) -> None:
        told(job, event)
        if isinstance(event, Started) and job.request.seed == 1:
            engine.cancel([job])

    jobs = engine.submit([request(seed=0), request(seed=1)], listener)
    told.wait(jobs)
    assert isinstance(jobs[1].outcome, Failed)
    assert jobs[0].result().image.tobytes() == alone("a whale", 2, 0, guidance_in_one_batch=False)[0].tobytes()


def test_a_deadline_ends_what_waits_and_what_is_drawn(engines: Engines) -> None:
    engine, told = engines(), Told()
    jobs = engine.submit([request(steps=128)] * 2, told, deadline=0.0)
    told.wait(jobs)
    for job in jobs:
        with pytest.raises(TimeoutError, match="deadline"):
            job.result()


def test_of_a_deadline_and_a_cancelling_the_first_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left, late = Job(request(), deadline=5.0), Job(request(), deadline=5.0)
    assert left.given_up() is None
    left.cancel()
    now[0] = 6.0
    late.cancel()
    assert isinstance(left.given_up(), Cancelled)
    assert isinstance(late.given_up(), TimeoutError)


def test_draining_takes_no_more_and_finishes_what_was_taken(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = engines(batch=1), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request(seed=seed) for seed in range(3)], told)
    assert not engine.drain(timeout=0.01)
    with pytest.raises(Draining):
        engine.submit([request()])
    gate.opened.set()
    assert engine.drain(timeout=30.0)
    assert all(isinstance(job.outcome, Drawn) for job in jobs)


def test_at_the_end_what_waits_and_what_is_drawn_fails_at_once(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, told = engines(batch=1, window=0.0), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request(steps=100, seed=seed) for seed in range(2)], told)
    assert gate.entered.wait(10)
    engine.end()
    told.wait(jobs)  # although the only worker is held up
    gate.opened.set()
    engine.close()
    for job in jobs:
        assert not any(isinstance(event, Progress) for event in told.events[job])
        with pytest.raises(Draining):
            job.result()


def test_closing_fails_what_waits(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = engines(batch=1, window=0.0), Told()
    gate = Gate(engine, monkeypatch)
    jobs = engine.submit([request(steps=100, seed=seed) for seed in range(3)], told)
    assert gate.entered.wait(10)
    gate.opened.set()
    engine.close()
    told.wait(jobs)
    assert all(isinstance(job.outcome, Failed) for job in jobs)


@pytest.mark.parametrize("fault", [InputError("not finite"), RuntimeError("out of memory")], ids=str)
def test_a_fault_of_one_image_is_no_fault_of_its_batch(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    draw = Painter.draw

    def breaks(painter: Painter, requests: Sequence[ImageRequest], *arguments: Any) -> list[Drawn]:
        if any(each.seed == 1 for each in requests):
            raise fault
        return draw(painter, requests, *arguments)

    monkeypatch.setattr(Painter, "draw", breaks)
    engine, told = engines(window=0.2), Told()
    jobs = engine.submit([request(seed=seed) for seed in range(3)], told)
    told.wait(jobs)
    assert [isinstance(job.outcome, Drawn) for job in jobs] == [True, False, True]
    assert isinstance(jobs[1].outcome, Failed)
    assert jobs[1].outcome.reason is fault


def test_the_last_event_comes_once(engines: Engines) -> None:
    engine, told = engines(), Told()
    jobs = engine.submit([request(seed=seed) for seed in range(4)], told)
    told.wait(jobs)
    engine.cancel(jobs)
    engine.drain(10.0)
    for job in jobs:
        assert sum(isinstance(event, Drawn | Failed) for event in told.events[job]) == 1


def test_an_unknown_model_is_told_with_those_there_are(engines: Engines) -> None:
    with pytest.raises(UnknownModel, match="did you mean tiny"):
        engines().submit([ImageRequest("a whale", "tinny")])


def test_latents_of_estimates_are_made_only_where_they_are_shown(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor | None] = []
    engine = engines()
    monkeypatch.setattr(engine, "_on_transition", lambda batch, index, count, clean: seen.append(clean))
    draw_all(engine, [request()])
    assert seen == [None, None]
