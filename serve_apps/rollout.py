"""Rollouts from a terminal: which releases there are, which one answers whom, and changes of that; over HTTP, of an application that is up.

Run: python -m serve_apps.rollout [--url http://127.0.0.1:8000] VERB, one of: status, releases, canary RELEASE --weight 0.05, shadow RELEASE,
promote [RELEASE], rollback, stop.
The token is read from $LONGTAIL_TOKEN. Last stdout line: one JSON object.
"""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from pipelines.errors import clear_errors
from serve_apps.access import TOKEN_VARIABLE
from serve_apps.client import RankClient


def arguments() -> argparse.Namespace:
    """What to do, and where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the application")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("status", help="the rollout, and what is seen of each release")
    verbs.add_parser("releases", help="what is published")
    for verb, told in (("canary", "answers a share of the users"), ("shadow", "ranks unseen"), ("promote", "becomes the stable one")):
        one = verbs.add_parser(verb, help=f"the release {told}")
        one.add_argument("release", nargs="?" if verb == "promote" else None)
        if verb == "canary":
            one.add_argument("--weight", type=float, required=True, help="share of the users, above 0 and up to 1")
    for verb, told in (("rollback", "take the canary back, or the last promotion"), ("stop", "end the shadow")):
        verbs.add_parser(verb, help=told)
    for name, one in verbs.choices.items():
        if name not in ("status", "releases"):
            one.add_argument("--reason", default="", help="stands in the history")
    return parser.parse_args()


def summary(state: Mapping[str, Any]) -> str:
    """The rollout in a few lines."""
    now = state["state"]
    lines = [f"stable   {now['stable']}"]
    lines += [f"canary   {now['canary']} for {now['weight']:.1%} of the users"] if now["canary"] else []
    lines += [f"shadow   {now['shadow']}"] if now["shadow"] else []
    lines += [f"because  {now['reason']}"] if now["reason"] else []
    for key, one in state["releases"].items():
        latency = "" if one["p95_ms"] is None else f", p50 {one['p50_ms']:.1f} ms, p95 {one['p95_ms']:.1f} ms"
        lines.append(f"  {key}: {one['requests']:,} requests, {one['errors']:,} failed{latency}")
    shadow = state["shadow"]
    if shadow["compared"]:
        share = shadow["same_first"] / shadow["compared"]
        lines.append(
            f"  shadow: {shadow['compared']:,} compared, same first item {share:.0%}, mean difference {shadow['score_difference'] / shadow['compared']:.4f}"
        )
    lines += [f"  {key} cannot be loaded: {why}" for key, why in state["failures"].items()]
    return "\n".join(lines)


def main() -> None:
    with clear_errors():
        args = arguments()
        client = RankClient(args.url, token=os.environ.get(TOKEN_VARIABLE))
        if args.verb == "releases":
            told: dict[str, Any] = client.releases()
            for one in told["releases"]:
                what = one.get("problem") or f"{one['run']}, published {one['published']}, {', '.join(one['rankers'])}"
                print(f"{one['release']}  {what}")
        else:
            body = {name: value for name, value in vars(args).items() if name in ("release", "weight", "reason") and value is not None}
            if args.verb == "rollback":
                state = client.rollout()["state"]
                body["release"] = state["canary"] or state["stable"]
            told = client.rollout() if args.verb == "status" else client.change_rollout({"action": args.verb, **body})
            print(summary(told))
        print(json.dumps(told))


if __name__ == "__main__":
    main()
