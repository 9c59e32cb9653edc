"""How wide each layer needs to be, from measurements of a trained network or from retraining."""
