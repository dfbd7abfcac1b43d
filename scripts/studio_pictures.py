"""Pictures of the studio for README and docs/studio.md, taken of the real page with the built-in model.

    python scripts/studio_pictures.py                     # into docs/images
    python scripts/studio_pictures.py --runs runs/emoji   # with the training view of a run

It needs Chromium and `pip install -e '.[dev]'`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
from browsers import find_chromium  # noqa: E402

PROMPT, SEED = "a smiling face with sunglasses", 2
OTHERS = ("a red apple", "a tractor", "a rocket on a blue background, flat style", "a dog face")
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
DESK, PHONE = {"width": 1280, "height": 960}, {"width": 390, "height": 844}
FILM = {"width": 1200, "height": 950}  # the animated picture


@contextmanager
def studio(gallery: str, runs: list[str]) -> Iterator[str]:
    """The address of a studio."""
    command = [sys.executable, "-m", "anystep", "studio", "--port", "0", "--no-open", "--gallery", gallery]
    command += ["--runs", *runs] if runs else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next(each for each in iter(process.stdout.readline, "") if "http://" in each)
        yield line.split("at ")[1].split()[0]
    finally:
        process.terminate()
        process.wait()


def opened(browser: Any, url: str, size: dict[str, int], scheme: str = "light", scale: int = 1) -> Any:
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale, has_touch=scale > 1)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


def draw(page: Any, prompt: str, seed: int, stop: int, wait: bool = True) -> None:
    """Draw a prompt in all numbers of steps up to the one at that place of the slider."""
    folded = page.locator("#settings:not([open]) summary")
    if was_folded := folded.count() > 0:
        folded.click()
    page.locator("#seed").fill(str(seed))
    if was_folded:
        page.locator("#settings summary").click()
    page.locator("#prompt").fill(prompt)
    page.locator("#slider").evaluate("(slider, value) => { slider.value = value; }", stop)
    page.locator("#go").click()
    if wait:
        page.wait_for_selector(f"#strip li:nth-child({stop + 1}) img", timeout=600_000)
        page.wait_for_selector("#cancel", state="hidden")
        page.mouse.move(0, 0)
        page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
        page.wait_for_timeout(400)


def animate(browser: Any, url: str, path: Path) -> None:
    """The slider at work: a prompt, its pictures as they come, and the slider through all of them."""
    page, frames = opened(browser, url, FILM), []

    def shoot(milliseconds: int) -> None:
        page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
        page.wait_for_timeout(200)
        frames.append((Image.open(BytesIO(page.screenshot())).convert("RGB"), milliseconds))

    page.locator("#prompt").fill("")
    draw(page, PROMPT, SEED, len(STEPS) - 1, wait=False)
    for place in range(len(STEPS)):
        page.wait_for_selector(f"#strip li:nth-child({place + 1}) img", timeout=600_000)
        page.mouse.move(0, 0)
        shoot(450)
    page.wait_for_selector("#cancel", state="hidden")
    for place in range(len(STEPS)):
        page.locator("#slider").fill(str(place))
        shoot(1300 if place in (0, 7) else 750)
    first, *others = [image for image, _ in frames]
    first.save(
        path, save_all=True, append_images=others, duration=[each for _, each in frames], loop=0, quality=82, method=6
    )


def photograph(browser: Any, url: str, out: Path, with_runs: bool) -> None:
    """The page on a desk and on a phone, light and dark; a trajectory, a wipe, and training."""

    def shoot(page: Any, name: str, whole: bool = False) -> None:
        image = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
        image.save(out / f"studio-{name}.webp", quality=86, method=6)

    for name, size, scheme, scale in (
        ("desk-dark", DESK, "dark", 1),
        ("phone-light", PHONE, "light", 2), ("phone-dark", PHONE, "dark", 2),
    ):  # fmt: skip
        page = opened(browser, url, size, scheme, scale)
        draw(page, PROMPT, SEED, 4)
        shoot(page, name)
        page.context.close()
    page = opened(browser, url, {**DESK, "height": 1230})
    draw(page, "a dog face", 1, 3)
    page.get_by_role("button", name="Trajectory").click()
    page.wait_for_selector("#frames li:nth-child(8)")
    page.wait_for_selector("#cancel", state="hidden")
    page.locator("#scrub").fill("2")
    page.locator("#jump").click()
    page.wait_for_selector(".jump img")
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.wait_for_timeout(500)
    shoot(page, "trajectory")
    page.locator("#film-close").click()
    page.locator("#slider").fill("0")
    page.get_by_role("button", name="Compare").click()
    page.locator("#slider").fill("3")
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.set_viewport_size(DESK)
    page.wait_for_timeout(500)
    shoot(page, "wipe")
    if with_runs:
        page.locator("#to-watch").click()
        page.wait_for_selector(".samples img")
        page.set_viewport_size({**DESK, "height": 1300})
        page.wait_for_timeout(1500)
        shoot(page, "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--runs", nargs="+", default=[])
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as gallery,
        studio(gallery, options.runs) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = opened(browser, url, DESK)
        for seed, prompt in enumerate(OTHERS):
            draw(page, prompt, seed, 3)
        animate(browser, url, options.out / "studio.webp")
        photograph(browser, url, options.out, bool(options.runs))


if __name__ == "__main__":
    main()
