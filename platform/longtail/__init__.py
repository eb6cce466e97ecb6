"""Longtail's core: ranking for people who hardly act and items that hardly anyone has met.

Everything here is plain Python, numpy, torch and Arrow; nothing imports ray. The Ray shells live in `actors`, `pipelines`, `tuning` and `serve_apps`.
"""

__version__ = "0.1.0"  # pyproject.toml reads it here; a node that got the project with a job has no metadata of it
