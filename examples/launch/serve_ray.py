"""`anystep serve` under Ray Serve, for those who run it: pip install 'anystep[serve]' 'ray[serve]'.

    serve run examples.launch.serve_ray:app

Every replica has an engine of its own, which makes batches of what it is sent; Ray starts more of them while requests
wait. API keys stand in ANYSTEP_API_KEYS of the replicas' environment, as with `anystep serve`.
"""

import os

from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(
    ray_actor_options={"num_gpus": float(os.environ.get("ANYSTEP_GPUS", "1"))},
    max_ongoing_requests=64,
    graceful_shutdown_timeout_s=300,
    health_check_period_s=10,
    autoscaling_config={"min_replicas": 1, "max_replicas": 16, "target_ongoing_requests": 16},
)
@serve.ingress(api)
class Images:
    """An engine, and the app of `anystep serve` before it."""

    def __init__(self, models: list[str], keys: list[str]) -> None:
        from anystep.studio.app import AppOptions, Service
        from anystep.studio.engine import Engine
        from anystep.studio.guard import GuardOptions
        from anystep.studio.models import load_models

        self.service = Service(Engine(load_models(models)), AppOptions(GuardOptions(keys)))
        api.mount("/", self.service.asgi)

    def check_health(self) -> None:
        """Ray replaces a replica that raises."""
        if not self.service.ready:
            raise RuntimeError("this replica is about to end")


MODELS, KEYS = os.environ.get("ANYSTEP_MODELS", "builtin"), os.environ.get("ANYSTEP_API_KEYS", "")
app = Images.bind(MODELS.split(), KEYS.replace(",", " ").split())
