"""Where a browser is that tests of the page can drive."""

import os
import shutil
from pathlib import Path

NEEDED = "ANYSTEP_NEEDS_BROWSER"  # set where tests of the page must not be left out
INSTALL = "`apt-get install chromium`, or without root `.venv/bin/playwright install chromium`, runs them"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DOWNLOADED = ("~/.cache/ms-playwright", "~/Library/Caches/ms-playwright", "~/AppData/Local/ms-playwright")
BINARIES = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
    "chromium-*/*/chrome.exe",
)


def find_chromium() -> str | None:
    """The system's, or else what Playwright has downloaded; None where there is neither."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return found
    folders = [os.environ.get("PLAYWRIGHT_BROWSERS_PATH"), *DOWNLOADED]
    paths = (Path(folder).expanduser().glob(each) for folder in folders if folder for each in BINARIES)
    return next((str(path) for found in paths for path in sorted(found, reverse=True)), None)
