"""Importance of a sweep's settings: fANOVA, the share of the score's variance that each explains over the space (Hutter et al. 2014), by Optuna.

Reads the trials; writes nothing.
"""

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from longtail.sweep_results import Trial
from tuning.searchers import distributions
from tuning.spaces import Parameter, Point

FEW_TRIALS = 10


def importance(space: Sequence[Parameter], start: Point, trials: Sequence[Trial], seed: int) -> dict[str, float]:
    """Shares by setting, the largest first; none with fewer than ten finished trials, or where all score the same."""
    known = [one for one in trials if one.state == "finished" and one.score is not None]
    if len(known) < FEW_TRIALS or len({one.score for one in known}) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    of_space = distributions(space, start)
    for one in known:
        study.add_trial(create_trial(params=dict(one.point), distributions=of_space, value=one.score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))
