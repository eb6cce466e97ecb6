"""Rankers by name."""

from longtail.rankers.base import Base
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.choirrec import ChoirRec
from longtail.rankers.duet import Duet
from longtail.rankers.ranker import Ranker
from longtail.rankers.saviorrec import SaviorRec
from longtail.rankers.settings import RankersSettings
from longtail.samples import FeatureSpec

RANKERS = ("base", "choirrec", "saviorrec", "duet")


def build_ranker(name: str, spec: FeatureSpec, catalogue: Catalogue, settings: RankersSettings) -> Ranker:
    """A ranker with freshly drawn weights.

    Raises:
        ValueError: no ranker has that name, or its settings contradict each other or the source.
    """
    if name == "base":
        return Base(spec, catalogue, settings.base)
    if name == "choirrec":
        return ChoirRec(spec, catalogue, settings.choirrec)
    if name == "saviorrec":
        return SaviorRec(spec, catalogue, settings.saviorrec)
    if name == "duet":
        return Duet(spec, catalogue, settings.duet)
    raise ValueError(f"ranker {name!r} is none of {list(RANKERS)}.")
