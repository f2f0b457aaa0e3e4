"""The prediction beside an output's results: kept once, read by whoever compares it with what happened."""

from __future__ import annotations

import logging

from schemas.documents import DocumentError
from schemas.prediction import PREDICTION_NAME, Prediction

from . import storage
from .errors import InputError, OutputError

logger = logging.getLogger(__name__)

LIMIT_BYTES = 1 << 20


def keep_prediction(output: str, prediction: Prediction) -> Prediction:
    """Stores it unless there is one; the one that is there now."""
    if storage.publish_if_absent(storage.join(output, PREDICTION_NAME), prediction.to_json()):
        return prediction
    return read_prediction(output) or prediction


def read_prediction(output: str) -> Prediction | None:
    """None where nothing was predicted; OutputError for what cannot be read."""
    url = storage.join(output, PREDICTION_NAME)
    try:
        return Prediction.from_json(storage.read_bytes(url, LIMIT_BYTES))
    except FileNotFoundError:
        return None
    except (DocumentError, InputError) as error:
        raise OutputError(
            f"{url} cannot be used: {error}. It says how many slots the job was begun with; deleted, the engine "
            "chooses by itself"
        ) from error


def known_prediction(output: str) -> Prediction | None:
    """The same for those who only show it: one that cannot be read is left out, with a warning."""
    try:
        return read_prediction(output)
    except OutputError as error:
        logger.warning("%s", error)
        return None
