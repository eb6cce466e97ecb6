"""What worker processes are told before anything else: to leave out warnings that come every second and ask for nothing."""

import logging


def without_dashboard() -> None:
    """Ray Train's watchdog asks Ray's state API, which only the dashboard serves, whether its controller is alive, and warns that it cannot (Ray 2.60)."""
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
