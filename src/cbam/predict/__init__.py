"""Use a trained network: classes and their probabilities for pictures, in Python and on the command line."""

from cbam.predict.prediction import Prediction
from cbam.predict.predictor import Predictor, load_run

__all__ = ["Prediction", "Predictor", "load_run"]
