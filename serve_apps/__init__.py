"""The Serve application. In a replica, what is large is imported first, at low priority: replicas start beside those that they will take over from."""

import sys

from serve_apps.background import import_in_background

if "ray" in sys.modules:
    import ray

    if ray.is_initialized() and (ray.get_runtime_context().get_actor_name() or "").startswith("SERVE_REPLICA::"):
        import_in_background("torch", "fastapi_offline", "longtail.ranking", "longtail.newcomers")
