"""The studio's page: how soon it is usable, and how soon after the click the first picture of a step is painted.

    python benchmarks/studio.py

It writes benchmarks/results/studio.json. It needs Chromium.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from record import write_record

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from browsers import find_chromium

OPENINGS, CLICKS = 10, 30
# from the click to the first picture that the page has decoded and painted, in milliseconds
CLICK = """async () => {
    const cell = document.querySelector("#strip li");
    const before = cell.dataset.url;
    const begin = performance.now();
    document.querySelector("#go").click();
    while (cell.dataset.url === before || !cell.dataset.url) await new Promise((resolve) => setTimeout(resolve, 1));
    await document.querySelector("#hero img").decode();
    await new Promise((resolve) => requestAnimationFrame(resolve));
    return performance.now() - begin;
}"""


def measure() -> dict[str, Any]:
    """All figures, in milliseconds."""
    with tempfile.TemporaryDirectory() as gallery, sync_playwright() as playwright:
        command = [sys.executable, "-m", "anystep", "studio", "--port", "0", "--no-open", "--gallery", gallery]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        url = next(line for line in process.stdout if "http://" in line).split("at ")[1].split()[0]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        try:
            openings = []
            for _ in range(OPENINGS):
                page = browser.new_context(bypass_csp=True).new_page()
                begin = time.perf_counter()
                page.goto(url)
                page.wait_for_selector("body[data-ready]")
                openings.append(1000 * (time.perf_counter() - begin))
            page.locator("#prompt").fill("a red apple")
            page.locator("#slider").evaluate("(slider) => { slider.value = 0; }")
            clicks = []
            for _ in range(CLICKS):
                clicks.append(page.evaluate(CLICK))
                page.wait_for_selector("#cancel", state="hidden")
            drawn = page.locator("#caption").inner_text()
        finally:
            browser.close()
            process.terminate()
            process.wait()
    return {
        "usable_first": openings[0],
        "usable_median": statistics.median(openings),
        "click_to_picture_first": clicks[0],
        "click_to_picture_median": statistics.median(clicks),
        "click_to_picture_p95": sorted(clicks)[int(0.95 * len(clicks))],
        "last_caption": drawn,
    }


if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "studio.json"
    write_record(out, {"load_average": os.getloadavg()[0], "milliseconds": measure()})
