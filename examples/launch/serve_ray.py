"""`anystep serve` under Ray Serve, for those who run it: pip install 'anystep[serve]' 'ray[serve]'.

    serve run --app-dir examples/launch serve_ray:app

Every replica has an engine of its own, which makes batches of what it is sent; Ray starts more of them while requests
wait. In the environment of the replicas: ANYSTEP_MODELS (builtin), ANYSTEP_API_KEYS, ANYSTEP_GPUS of a replica (1).
"""

import os

from ray import serve
from starlette.types import ASGIApp


def images_app() -> ASGIApp:
    """The app of `anystep serve`, made in each replica."""
    from anystep.studio.app import AppOptions, Service
    from anystep.studio.engine import Engine
    from anystep.studio.guard import GuardOptions
    from anystep.studio.models import load_models

    models = load_models(os.environ.get("ANYSTEP_MODELS", "builtin").split())
    keys = os.environ.get("ANYSTEP_API_KEYS", "").replace(",", " ").split()
    return Service(Engine(models), AppOptions(GuardOptions(keys))).asgi


@serve.deployment(
    ray_actor_options={"num_gpus": float(os.environ.get("ANYSTEP_GPUS", "1"))},
    max_ongoing_requests=64,
    graceful_shutdown_timeout_s=300,
    autoscaling_config={"min_replicas": 1, "max_replicas": 16, "target_ongoing_requests": 16},
)
@serve.ingress(images_app)
class Images:
    """One replica."""


app = Images.bind()
