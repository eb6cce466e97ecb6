"""The stages of a sweep's trials: what each trial's result comes from, and what several trials share, built once before they start.

Reads what the stages read, writes their artifacts.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from longtail.artifacts import Store
from longtail.code_collisions import NoPlaceError
from longtail.codes import TooFewRowsError
from longtail.config import Config
from longtail.training_loop import NonFiniteLossError
from pipelines.stage import Stage, ensure, line, provenance
from pipelines.train import ContradictionError

logger = logging.getLogger(__name__)

#: Our own refusals of a point: the same settings meet them every time. Whatever else ends a trial is a failure, which may be mended.
REFUSALS = (TooFewRowsError, NoPlaceError, ContradictionError, NonFiniteLossError)


def ensure_shared(last: Stage, configs: Sequence[Config], store: Store) -> None:
    """Build each stage before `last` that several configs share, once: every config's line up to where it parts from all others'."""
    provenances = [provenance(last, config) for config in configs]
    num_configs = Counter(made_of for one in provenances for made_of in one.values())
    ready: set[str] = set()
    for config, made_of in zip(configs, provenances, strict=True):
        try:
            for stage in line(last)[:-1]:
                if num_configs[made_of[stage.name]] > 1 and made_of[stage.name] not in ready:
                    ensure(stage, config, store, build_inputs=True)
                    ready.add(made_of[stage.name])
        except REFUSALS as error:  # its trials meet it again, and their rows of the table say so
            logger.info("refused: %s", error)
