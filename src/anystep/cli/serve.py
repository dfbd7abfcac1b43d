"""`anystep serve`: models over HTTP, with OpenAI's images API."""

import argparse
import math
import os
from ipaddress import ip_address

from anystep.bounds import (
    BatchSize,
    Count,
    Mebibytes,
    Milliseconds,
    Port,
    SamplingSteps,
    Seconds,
    Threads,
    shown,
)  # fmt: skip
from anystep.cli.option_types import origin, size, spec
from anystep.cli.options import Commands, add_options
from anystep.console import say
from anystep.errors import InputError

KEYS = "ANYSTEP_API_KEYS"
SHORTEST_KEY = 16  # characters


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve", help="models over HTTP, with OpenAI's images API",
        epilog=f"API keys stand in the environment variable {KEYS}, separated by commas.",
    )  # fmt: skip
    option = parser.add_argument
    add_options(parser, "--model", nargs="+", default=["builtin"])
    add_options(parser, "--device", "--precision")
    option("--host", type=spec, default="127.0.0.1", help="address; another than this machine's own takes API keys")
    option("--port", type=Port, default=8000, help="0 is a free one")
    option("--batch", type=BatchSize, default=16, help="most images drawn together")
    option("--window", type=Milliseconds, default=5.0, help="milliseconds that an image waits for others to join it")
    option(
        "--workers", type=Threads, help="batches drawn at the same time (default: 1; on a CPU its cores / --threads)"
    )
    add_options(parser, "--threads")
    option("--queue", type=Count, default=256, help="most images that wait; further ones are told when to ask again")
    option("--deadline", type=Seconds, default=120.0, help="most seconds that a request waits for its answer")
    option("--max-size", type=size, metavar="WxH", help="most pixels of an image, as an area (default: 1024x1024)")
    option("--max-steps", type=SamplingSteps, default=128, help="most steps of an image")
    option("--max-prompt", type=Count, default=2000, help="most characters of a prompt")
    option("--max-body", type=Mebibytes, default=20.0, help="most MiB of a request")
    option("--allow-origin", type=origin, nargs="+", default=[], help="other web pages that may ask, as https://host")
    option("--drain", type=Seconds, default=300.0, help="seconds for accepted requests after SIGTERM or Ctrl-C")
    parser.set_defaults(run=run)


def api_keys(host: str) -> list[str]:
    """The keys of the environment. Raises `InputError` where there is none and others than this machine could ask."""
    keys = os.environ.get(KEYS, "").replace(",", " ").split()
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise InputError(
            f"a key of {KEYS} is too short: expected at least {SHORTEST_KEY} characters that nobody guesses"
        )
    if not keys and host != "localhost" and not is_loopback(host):
        raise InputError(f"--host {shown(host)} is reached by others: set API keys in {KEYS}, or use 127.0.0.1")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to this address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def run(options: argparse.Namespace) -> None:
    keys = api_keys(options.host)
    try:
        from anystep.studio.server import listen, serve
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'anystep[serve]'") from None
    from anystep.studio.app import AppOptions, Service
    from anystep.studio.engine import Engine, EngineOptions
    from anystep.studio.guard import GuardOptions, served_hosts
    from anystep.studio.models import load_models, worker_count
    from anystep.studio.request import Limits

    listener = listen(options.host, options.port)
    models = load_models(options.model, options.device, options.threads, options.precision)
    workers = options.workers or worker_count(models, options.threads)
    engine = Engine(
        models, EngineOptions(options.batch, options.window / 1000, options.queue, workers),
        Limits(math.prod(options.max_size or (1024, 1024)), options.max_steps, options.max_prompt),
    )  # fmt: skip
    hosts, body = served_hosts(options.host, keys), int(options.max_body * 2**20)
    service = Service(engine, AppOptions(GuardOptions(keys, hosts, options.allow_origin, body), options.deadline))
    serve(service, listener, options.drain, lambda url: say(f"serving {', '.join(models)} at {url}"))
