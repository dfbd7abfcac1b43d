"""The page in Chromium, as its users use it: with a mouse, with a keyboard alone, and with the server's refusals."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import INSTALL, find_chromium
from PIL import Image

from anystep.pipelines.load import Model
from anystep.pipelines.settings import read_settings
from anystep.studio.app import Service
from anystep.studio.engine import Engine, EngineOptions
from anystep.studio.gallery import Gallery
from anystep.studio.page_routes import page_router
from anystep.studio.runs import Runs
from anystep.studio.runs_routes import runs_router

from .conftest import Running
from .test_runs import line, write_comparison, write_run

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        pytest.fail(f"there is no Chromium: {INSTALL}")
    with sync_playwright() as playwright:
        # a container has no sandbox to offer, and nothing here is from elsewhere
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] * (os.name == "posix"))
        yield started
        started.close()


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A folder with a run of three steps and a comparison."""
    folder = write_run(tmp_path / "runs" / "one", 3)
    for step in (2, 3):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / "samples" / f"step-{step:08d}.png")
    report = write_comparison(tmp_path / "runs" / "two") / "report.json"
    figure = '"value": 8.0, "low": 0.1, "high": 9.0'
    report.write_text(report.read_text().replace(figure, '"value": null, "low": null, "high": null'))
    return tmp_path / "runs"


@pytest.fixture
def studio(served: dict[str, Model], gallery: Path, watched: Path) -> Iterator[Running]:
    engine = Engine(served, EngineOptions())
    service = Service(engine)
    service.api.include_router(page_router(engine, Gallery(gallery), 60.0))
    service.api.include_router(runs_router(Runs([watched])))
    running = Running(service)
    yield running
    running.stop()
    engine.close()


@pytest.fixture
def opened(browser: Any, studio: Running) -> Iterator[Open]:
    """Open the page, anew or again; whatever goes wrong in its scripts fails the test."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_page(width: int = 1280, again: Any = None, **options: Any) -> Any:
        if again is None:
            contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
            page = contexts[-1].new_page()
            page.set_default_timeout(15_000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(studio.url)
        else:
            again.reload()
            page = again
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def ask(page: Any, prompt: str = "a whale", stop: int = 2, seed: int = 7) -> None:
    """Fill in the form: `stop` is the place of the slider, 2 for four steps."""
    page.locator("#prompt").fill(prompt)
    page.locator("#seed").fill(str(seed))
    page.locator("#slider").fill(str(stop))


def check_accessible(page: Any) -> None:
    """By the rules of axe; the page must have been opened with `bypass_csp`, since axe is a script of others."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def drawn(page: Any, count: int) -> Any:
    """The cell of the strip with a number of steps, once its picture is there."""
    cell = page.locator("#strip li").filter(has=page.get_by_text(str(count), exact=True))
    cell.locator("img").wait_for()
    return cell


def pixels(page: Any, selector: str) -> bytes:
    """Of the picture that an element of the page shows."""
    script = """async (image) => {
        await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
        return [width, height, [...data]];
    }"""
    width, height, values = page.locator(selector).evaluate(script)
    return Image.frombytes("RGBA", (width, height), bytes(values)).convert("RGB").tobytes()


def test_the_slider_shows_one_noise_in_more_and_more_steps(opened: Open, alone: Model) -> None:
    page = opened()
    ask(page)
    page.locator("#go").click()
    for count in (1, 2, 4):
        cell = drawn(page, count)
        assert re.search(rf"{count}\s*{2 * count} NFE\s*[\d.]+ m?s", cell.inner_text())
    assert page.locator("#strip img").count() == 3
    for stop, count in enumerate((1, 2, 4)):
        page.locator("#slider").fill(str(stop))
        page.locator("#caption").get_by_text(f"{count} step").wait_for()
        expected = alone("a whale", count, 7, guidance_in_one_batch=False)[0]
        assert pixels(page, "#hero img") == expected.tobytes()
    page.locator("#slider").fill("3")  # further than was drawn: the same noise goes on
    drawn(page, 8)
    page.locator("#caption").get_by_text("8 steps · 16 NFE").wait_for()
    assert pixels(page, "#hero img") == alone("a whale", 8, 7, guidance_in_one_batch=False)[0].tobytes()


def test_four_are_made_and_the_seed_of_one_is_used_again(opened: Open, alone: Model) -> None:
    page = opened()
    ask(page, stop=1)
    page.locator("#four").click()
    page.locator(".quad button:nth-child(4) img").wait_for()
    page.locator(".quad button:nth-child(3)").click()
    page.get_by_role("button", name="Reuse seed").click()
    assert page.locator("#seed").input_value() == "9"
    assert page.locator("#lock").get_attribute("aria-pressed") == "true"
    assert pixels(page, "#hero img") == alone("a whale", 2, 9, guidance_in_one_batch=False)[0].tobytes()
    page.locator("#dice").click()
    assert page.locator("#seed").input_value() != "9"


def test_the_gallery_is_there_after_a_reload_and_the_form_is_as_it_was(opened: Open, gallery: Path) -> None:
    page = opened()
    ask(page, stop=1)
    page.locator("#guidance").fill("2.5")
    page.locator("#go").click()
    drawn(page, 2)
    page.locator("#gallery .count").get_by_text("2").wait_for()
    page = opened(again=page)
    assert page.locator("#prompt").input_value() == "a whale"
    assert page.locator("#guidance").input_value() == "2.5"
    drawn(page, 1)
    drawn(page, 2)
    assert page.locator("#gallery li").count() == 1
    page.locator("#gallery li").hover()
    page.locator("#gallery .remove").click()
    page.locator("#gallery li").wait_for(state="detached")
    assert list(gallery.glob("*.png")) == []


def test_a_png_holds_its_settings_and_restores_them(opened: Open, tmp_path: Path, gallery: Path) -> None:
    page = opened()
    ask(page, stop=1, seed=11)
    page.locator("#guidance").fill("3")
    page.locator("#low").fill("0.2")
    page.locator("#size").select_option(index=1)
    size = page.locator("#size").input_value()
    page.locator("#go").click()
    drawn(page, 2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "saved.png")
    settings = read_settings(tmp_path / "saved.png")
    assert (settings.prompts, settings.seeds, settings.steps) == (("a whale",), (11,), (2,))
    assert (settings.guidance, settings.guidance_interval) == (3.0, (0.2, 1.0))
    assert "x".join(map(str, settings.size)) == size
    before = pixels(page, "#hero img")

    ask(page, "a tractor", seed=1)
    page.locator("#guidance").fill("1")
    page.locator("#low").fill("0")
    dropped(page, (tmp_path / "saved.png").read_bytes(), "saved.png")
    page.locator("#status").get_by_text("Settings restored").wait_for()
    values = {name: page.locator(f"#{name}").input_value() for name in ("prompt", "seed", "guidance", "low", "size")}
    assert values == {"prompt": "a whale", "seed": "11", "guidance": "3", "low": "0.2", "size": size}
    page.locator("#go").click()
    drawn(page, 1)
    page.locator("#caption").get_by_text("2 steps").wait_for()
    assert pixels(page, "#hero img") == before


def dropped(page: Any, content: bytes, name: str, on: str = "body") -> None:
    """Drop a file on the page."""
    script = """([bytes, name]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        return data;
    }"""
    data = page.evaluate_handle(script, [list(content), name])
    page.dispatch_event(on, "drop", {"dataTransfer": data})


def test_another_picture_is_started_from(opened: Open, alone: Model, tmp_path: Path) -> None:
    page = opened()
    image = Image.new("RGB", (16, 16), "orange")
    image.save(tmp_path / "orange.png")
    dropped(page, (tmp_path / "orange.png").read_bytes(), "orange.png")
    page.locator("#start img").wait_for()
    ask(page, stop=1)
    page.locator("#strength").fill("0.4")
    page.locator("#go").click()
    drawn(page, 2)
    page.locator("#caption").get_by_text("2 steps").wait_for()
    expected = alone("a whale", 2, 7, image=image, strength=0.4, guidance_in_one_batch=False)[0]
    assert pixels(page, "#hero img") == expected.tobytes()
    page.get_by_role("button", name="Noise alone").click()
    assert page.locator("#start img").count() == 0


def test_copies_say_what_draws_the_same_picture(opened: Open, alone: Model, tiny_model: Path, tmp_path: Path) -> None:
    from anystep.cli import main

    page = opened(permissions=["clipboard-read", "clipboard-write"])
    ask(page, 'it\'s a "whale"', stop=1)
    page.locator("#guidance").fill("2")
    page.locator("#stochasticity").fill("0.5")
    page.locator("#go").click()
    drawn(page, 2)
    page.locator("#caption").get_by_text("2 steps").wait_for()
    shown = pixels(page, "#hero img")

    def copied(name: str) -> str:
        page.get_by_role("button", name=name).click()
        page.locator("#status").get_by_text("Copied").wait_for()
        return str(page.evaluate("() => navigator.clipboard.readText()"))

    import shlex

    words = shlex.split(copied("Copy command"))
    assert words[:3] == ["anystep", "generate", 'it\'s a "whale"']
    assert words[words.index("--model") + 1] == str(tiny_model)
    assert main([*words[1:], "--force", "--out", str(tmp_path / "sheet.png"), "--separate", str(tmp_path / "one")]) == 0
    (file,) = (tmp_path / "one").iterdir()
    difference = [abs(one - other) for one, other in zip(Image.open(file).tobytes(), shown, strict=True)]
    assert max(difference) <= 1  # it evaluates both halves of a guided step together
    lines = copied("Copy Python").replace("picture.png", str(tmp_path / "picture.png"))
    exec(lines, {})
    assert Image.open(tmp_path / "picture.png").tobytes() == Image.open(file).tobytes()


def test_a_cancelled_request_and_a_refused_one_leave_the_page_usable(opened: Open, studio: Running) -> None:
    page = opened()
    ask(page, stop=7)
    page.locator("#go").click()
    drawn(page, 1)
    page.locator("#cancel").click()
    page.locator("#status").get_by_text("Cancelled").wait_for()
    assert page.locator("#strip .waiting").count() == 0
    engine = studio.service.engine
    for _ in range(500):
        if not engine.waiting + engine.running:
            break
        page.wait_for_timeout(10)
    assert engine.waiting + engine.running == 0

    page.locator("#size").evaluate("select => { select.options[0].value = '15x15'; select.selectedIndex = 0; }")
    page.locator("#go").click()
    page.locator("#status.bad").get_by_text("multiples of").wait_for()
    page.locator("#prompt").fill("")
    page.locator("#go").click()
    page.locator("#status.bad").get_by_text("Say what to draw").wait_for()
    page.locator("#size").select_option(index=1)
    ask(page, stop=0)
    page.locator("#go").click()
    drawn(page, 1)
    assert page.locator("#status").inner_text() == ""


def test_a_keyboard_is_enough(opened: Open) -> None:
    page = opened()
    assert page.evaluate("() => document.activeElement.id") == "prompt"
    page.keyboard.type("a red apple")
    page.keyboard.press("Enter")
    drawn(page, 8)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()"))
    wanted = {
        "go",
        "four",
        "model",
        "slider",
        "seed",
        "dice",
        "lock",
        "size",
        "guidance",
        "low",
        "high",
        "stochasticity",
    }
    wanted |= {"start-file", "recall-file", "Copy command", "Copy Python", "Download", "Reuse seed", "Start from it"}
    assert wanted - reached == set()
    page.locator("#slider").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#caption").get_by_text("4 steps").wait_for()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_it_is_accessible_and_fits_a_phone(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    if width < 700:  # folded there
        page.locator("#settings summary").click()
    ask(page, stop=1)
    page.locator("#go").click()
    drawn(page, 2)
    check_accessible(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_a_trajectory_is_scrubbed_and_left_for_the_end(opened: Open, alone: Model) -> None:
    page = opened(bypass_csp=True)
    ask(page)
    page.locator("#go").click()
    drawn(page, 4)
    page.get_by_role("button", name="Trajectory").click()
    page.locator("#frames li:nth-child(4)").wait_for()
    page.locator("#status").get_by_text("Drawing").wait_for(state="detached")
    estimates: list[Any] = []

    def keep(pipeline: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        estimates.append(pipeline._show(tensors["pred_original_sample"], "pil")[0])
        return {}

    options: dict[str, Any] = {
        "callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["pred_original_sample"],
    }  # fmt: skip
    whole = alone("a whale", 4, 7, guidance_in_one_batch=False, **options)[0]
    for place, expected in enumerate([*estimates[:3], whole]):
        page.locator("#scrub").fill(str(place))
        assert pixels(page, "#hero img") == expected.tobytes()
    page.locator("#scrub").fill("1")
    page.locator("#caption").get_by_text("After 2 of 4 transitions").wait_for()
    page.get_by_role("button", name="To the end from here: 3 steps").click()
    page.locator("#caption").get_by_text("3 steps · 6 NFE").wait_for()
    check_accessible(page)
    jumped = alone("a whale", 4, 7, guidance_in_one_batch=False, finish_after=2)[0]
    assert pixels(page, "#hero img") == jumped.tobytes()
    page.locator("#film-close").click()
    assert pixels(page, "#hero img") == whole.tobytes()


def test_a_trajectory_may_be_closed_while_it_is_drawn(opened: Open) -> None:
    page = opened()
    ask(page, stop=5)
    page.locator("#go").click()
    drawn(page, 32)
    page.get_by_role("button", name="Trajectory").click()
    page.locator("#frames li").first.wait_for()
    page.locator("#film-close").click()
    page.locator("#cancel").wait_for(state="hidden")
    assert page.locator("#film").is_hidden()
    assert page.locator("#status").text_content() == ""


def test_two_pictures_are_compared_with_a_wipe(opened: Open, alone: Model) -> None:
    page = opened(bypass_csp=True)
    ask(page, stop=1)
    page.locator("#go").click()
    drawn(page, 2)
    page.locator("#caption").get_by_text("2 steps").wait_for()
    page.get_by_role("button", name="Compare").click()
    page.locator("#guidance").fill("4")
    page.locator("#go").click()
    page.locator(".sides").get_by_text("2 steps · 4 NFE · guidance 4").wait_for()
    page.locator(".wipe .over").wait_for()
    assert pixels(page, ".wipe .over") == alone("a whale", 2, 7, guidance_in_one_batch=False)[0].tobytes()
    check_accessible(page)
    page.locator(".wipe input").fill("25")
    assert page.locator(".wipe .over").evaluate("image => image.style.clipPath") == "inset(0px 75% 0px 0px)"
    page.get_by_role("button", name="Compare").click()
    assert page.locator(".wipe").count() == 0


def test_two_models_are_compared_with_a_wipe(opened: Open, alone: Model, served: dict[str, Model]) -> None:
    page = opened()
    ask(page, stop=1)
    page.locator("#go").click()
    drawn(page, 2)
    page.locator("#caption").get_by_text("2 steps").wait_for()
    page.get_by_role("button", name="Compare").click()
    page.locator("#model").select_option("classes")  # it offers what it knows
    assert page.locator("#examples button").all_inner_texts() == ["ant", "bee", "cat"]
    ask(page, "bee", stop=1)
    page.locator("#guidance").fill("2")
    page.locator("#go").click()
    sides = page.locator(".sides span")  # one step is drawn and shown before two
    sides.filter(has_text="classes").filter(has_text="2 steps").wait_for()
    assert sides.filter(has_text="tiny").filter(has_text="2 steps").count() == 1
    page.locator(".wipe .over").wait_for()
    shown = {pixels(page, ".wipe .over"), pixels(page, ".wipe img:not(.over)")}
    bee = served["classes"]("bee", 2, 7, guidance=2.0, guidance_in_one_batch=False)
    assert shown == {each[0].tobytes() for each in (alone("a whale", 2, 7, guidance_in_one_batch=False), bee)}


def test_a_run_is_watched_as_it_goes_on(opened: Open, watched: Path) -> None:
    page = opened(bypass_csp=True)
    page.locator("#to-watch").click()
    page.locator("#runs button").filter(has_text="runs/one").click()
    page.locator("#watched").get_by_text("3 of 100").wait_for()
    assert page.locator("#watched .legend li").all_inner_texts() == ["no interval (t = r)", "long intervals"]
    assert page.locator("#watched svg.chart .line").count() == 2
    with (watched / "one" / "metrics.jsonl").open("a") as file:
        file.write(line(4))
    page.locator("#watched").get_by_text("4 of 100").wait_for()
    page.locator(".samples input").fill("0")
    page.locator("img[alt='Samples after 2 steps']").wait_for()
    page.locator("#runs button").filter(has_text="comparison").click()
    page.locator("#watched .legend").get_by_text("theirs").wait_for()
    assert page.locator("#watched svg .band").count() == 2
    assert page.locator("#watched td").all_text_contents()[:2] == ["–", "4 ± 4.45"]
    check_accessible(page)
    page = opened(again=page)  # the view is in the address
    page.locator("#watched").get_by_text("4 of 100").wait_for()
    page.locator("#to-draw").click()
    page.locator("#prompt").wait_for()
