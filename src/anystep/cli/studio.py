"""`anystep studio`: a page that draws, on this machine."""

import argparse
import math
import os
import sys
import webbrowser
from pathlib import Path

from anystep.bounds import Port, Threads
from anystep.cli.option_types import input_folder, origin, output_folder, size
from anystep.cli.options import Commands, add_options
from anystep.console import say
from anystep.errors import InputError

HOST = "127.0.0.1"
DEADLINE = 24 * 3600.0  # seconds: who waits too long cancels


def add(commands: Commands) -> None:
    parser = commands.add_parser("studio", help="a page that draws, on this machine")
    option = parser.add_argument
    add_options(parser, "--model", nargs="+", default=["builtin"])
    add_options(parser, "--device", "--precision")
    option(
        "--gallery", type=output_folder, default=Path("gallery"), metavar="FOLDER",
        help="where pictures are kept (default: gallery)",
    )  # fmt: skip
    option(
        "--runs", type=input_folder, nargs="+", metavar="FOLDER",
        help="folders of training runs and comparisons to watch (default: runs, where there is one)",
    )  # fmt: skip
    option("--port", type=Port, default=8188, help="0 is a free one")
    option("--workers", type=Threads, help="batches drawn at a time (default: 1; on a CPU its cores / --threads)")
    add_options(parser, "--threads")
    option("--max-size", type=size, metavar="WxH", help="most pixels of an image, as an area (default: 4096x4096)")
    option(
        "--allow-origin", type=origin, nargs="+", default=[],
        help="the page's address at a proxy before it, as https://host",
    )  # fmt: skip
    option("--no-open", action="store_true", help="do not open the page in a browser")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    try:
        from anystep.studio.server import listen, serve
    except ModuleNotFoundError as error:
        raise InputError(f"studio needs {error.name}: pip install 'anystep[serve]'") from None
    from anystep.studio.app import AppOptions, Service
    from anystep.studio.engine import Engine, EngineOptions
    from anystep.studio.gallery import Gallery
    from anystep.studio.guard import GuardOptions, served_hosts
    from anystep.studio.models import load_models, worker_count
    from anystep.studio.page_routes import page_router
    from anystep.studio.request import Limits
    from anystep.studio.runs import Runs
    from anystep.studio.runs_routes import runs_router

    listener = listen(HOST, options.port)
    models = load_models(options.model, options.device, options.threads, options.precision)
    workers = options.workers or worker_count(models, options.threads)
    engine = Engine(models, EngineOptions(workers=workers), Limits(math.prod(options.max_size or (4096, 4096))))
    guard = GuardOptions(hosts=served_hosts(HOST, ()), origins=options.allow_origin)
    service = Service(engine, AppOptions(guard, DEADLINE))
    service.api.include_router(page_router(engine, Gallery(options.gallery), DEADLINE))
    watched = options.runs or [folder for folder in (Path("runs"),) if folder.is_dir()]
    service.api.include_router(runs_router(Runs(watched), lambda: not service.ready))

    def started(url: str) -> None:
        say(f"the studio is at {url}  (Ctrl-C ends it)")
        if not options.no_open and on_a_desktop():
            webbrowser.open(url)

    serve(service, listener, 5.0, started)


def on_a_desktop() -> bool:
    """Whether a browser has a screen to open on: one in the terminal would take it."""
    screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and sys.stdout.isatty()
